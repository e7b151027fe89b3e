"""The seeded subset of images: what every method sees, however slow."""

import numpy as np
from numpy.typing import NDArray

SEED = 0


def subset(count: int, size: int) -> NDArray[np.intp]:
    """Up to `size` rows of `count`, the same ones for every method, bundle and run."""
    return np.random.default_rng(SEED).permutation(count)[:size]
