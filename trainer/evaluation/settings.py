"""All that a run of the evaluation may vary, as one frozen value."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..data.tables import Split
from ..statistics import RESAMPLES

NEMT = "nemt"
SHUFFLED = "shuffled_module"
MEAN_OF_BOXES = "mean_of_boxes"
IN_TRAINING = (
    NEMT,
    "gradcam++",
    "integrated_gradients",
    "gradient_shap",
    "relax",
    "u_relax",
    "centred_blob",
    "random",
    MEAN_OF_BOXES,
)
"""Methods that the end of a training run compares: the ones that a CPU can afford."""

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]


class EvaluationSettings(BaseModel):
    """What is measured, and how finely."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = IN_TRAINING
    """Keys of the methods to compare; keys that a bundle's kind does not have are ignored."""

    split: Split = "test"
    """Which images: "train", "validation" or "test"."""

    thorough: bool = False
    """Whether removal curves, ROAD, subgroups and the further tests are measured as well."""

    skip_bad: bool = False
    """Whether images that cannot be read are left out, with a note, instead of an error."""

    subset: Count = 20
    """Images in the seeded subset: for slow methods, ROAD and the further tests."""

    slow_seconds: Seconds = 5.0
    """Seconds an image above which a method sees only the subset, without a GPU."""

    quick_seconds: Seconds = 0.5
    """Seconds an image up to which a method takes part in tests that need hundreds of its maps,
    without a GPU."""

    timing_rounds: Count = 8
    """Images that each method is timed on, one at a time."""

    timing_slow_rounds: Count = 2
    """The same for a method slower than `timing_slow_seconds`."""

    timing_slow_seconds: Seconds = 1.5
    """Seconds an image above which a method is timed on fewer images, and not in a batch."""

    timing_batch: Count = 32
    """Images in the batch that is timed."""

    gradient_steps: Annotated[int, Field(ge=2)] = 50
    """Integrated Gradients: points on the path. Captum's default; the NEMt paper's time of 0.049 s
    an image fits it."""

    shap_samples: Count = 5
    """GradientSHAP: points on the path. The default of captum and Quantus."""

    rise_masks: Annotated[int, Field(ge=2)] = 4000
    """RISE: random masks an image; half as many without a GPU. The authors' number for the lighter
    of their two networks."""

    relax_masks: Count = 3000
    """RELAX: random masks an image with a GPU. The authors' number."""

    relax_masks_cpu: Count = 500
    """The same without a GPU: the error of a map falls with the square root of the number."""

    smooth_mask_steps: Count = 300
    """Smooth Pixel Mask: steps of Adam. The authors take 800 of SGD with momentum."""

    smooth_mask_area: Share = 0.05
    """Smooth Pixel Mask: share of the image that it keeps. The NEMt paper's."""

    layer_groups: Count = 8
    """Groups of layers that are randomised one after the other."""

    removal_steps: Annotated[int, Field(ge=2)] = 16
    """Points of a deletion or insertion curve after its first."""

    resamples: Count = RESAMPLES
    """Bootstrap resamples of each interval."""
