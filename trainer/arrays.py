"""The arrays that pass between the files that measure, by name."""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
"""(N, C, S, S) in [0, 1]; C = 1 for radiographs, 3 for photographs."""
Maps = NDArray[np.float32]
"""(N, S, S) of any method, high = evidence."""
Regions = NDArray[np.bool_]
"""(N, S, S), True where people saw the evidence."""
