"""The recipe of a training run: every number that decides what a bundle becomes.

A recipe is a TOML file with one section for each thing that is decided; recipe_file.py reads and
writes it. The fields have no defaults here: the defaults are the file recipes/default.toml.
deploy/decisions.md says, with figures, why they are what they are. Nothing here needs torch.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from nemt_dicom.model.preprocess import Preprocessing

DEFAULT_BACKBONE = "tf_efficientnet_lite0"

MOST_THREADS = 1024

Fill = Literal["black", "mean", "blur"]
"""What takes the place of removed pixels; the same words as the bundle's."""

TrainingFill = Literal["black", "mean", "blur", "mixed"]
"""Fill of a training image; "mixed" is black, mean or blur, a third of the images each."""

Response = Literal["probability", "logit", "evidence"]
"""What is compared before and after pixels are removed; see `objectives.respond`."""

Count = Annotated[int, Field(ge=1, le=100_000)]
Natural = Annotated[int, Field(ge=0, le=100_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _not_a_word(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('should be a list, such as ["edema", "mass"]')
    return value


Labels = Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_not_a_word)]


class Section(BaseModel):
    """A section of the file. The first line below each field is its comment in written recipes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class Data(Section):
    """Which label is explained, and which images choose between models."""

    target: Annotated[str, Field(min_length=1)]
    """Label to explain, such as "pneumonia". The option --target sets it.

    NEM-U explains no label; there it is the label whose ground truth measures the masks.
    """
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the training patients kept for validation, if no table names any; 0 to 1."""


class Input(Section):
    """How an image becomes the model's input, in training and in the service alike."""

    size: Annotated[int, Field(ge=32, le=2048)]
    """Side of the square input in pixels, 32 to 2048. Twice the side costs four times the time."""
    low_percentile: Annotated[float, Field(ge=0, le=100)]
    """Percentile of brightness that becomes 0 (paper: 0, the minimum). Higher: dark greys clip."""
    high_percentile: Annotated[float, Field(ge=0, le=100)]
    """Percentile of brightness that becomes 1 (paper: 100, the maximum). Lower: bright clip."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> "Input":
        if self.low_percentile >= self.high_percentile:
            raise ValueError("low_percentile is below high_percentile")
        return self


class Augmentation(Section):
    """What happens to a training image at random, beside small turns, moves and contrasts."""

    mirror: bool
    """Exchange left and right of half of the images. false for a label that names a side."""
    noise: Annotated[float, Field(ge=0, le=1)]
    """Largest standard deviation of added noise, in units of the grey range; 0: none."""


class TargetModel(Section):
    """Φ, the classifier that is explained, and how it is trained. It is frozen afterwards."""

    backbone: Annotated[str, Field(min_length=1)]
    """Name of a timm model (paper: "resnet50")."""
    pretrained: bool
    """Start from ImageNet weights. false: from random weights, or from --initial-weights."""
    frozen_stages: Natural
    """Number of backbone stages whose weights stay as they start; none if they start random.

    Only the running statistics of their batch norms become those of the training images.
    """
    epochs: Count
    """Epochs at most (paper: 10)."""
    patience: Count
    """Training stops after so many epochs without one worth keeping."""
    optimiser: Literal["adamw", "prodigy"]
    """"adamw" with warm-up and a cosine schedule, or "prodigy", the paper's."""
    learning_rate: Positive
    """Largest step size, above 0. "adamw": about 1e-3; "prodigy" finds its scale itself: 1."""
    weight_decay: NotNegative
    """Weight decay of the optimiser (paper: 0.01). Higher: smaller weights."""
    average: Annotated[float, Field(ge=0, lt=1)]
    """Share of the running mean of the weights that stays at each step, 0 to below 1; 0: none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    """Labels become this and 1 minus this, 0 to below 0.5. Higher: probabilities less extreme."""
    auxiliary: Labels
    """Further labels to learn if the data know them; ["all"]: all of theirs; []: none."""
    auxiliary_weight: NotNegative
    """Weight of the loss of each auxiliary label; the target's is 1."""
    mined_weight: NotNegative
    """Weight of positives mined from reports (NIH) beside labels by radiologists (RSNA)."""
    teachers: Natural
    """Number of models trained first, whose mean answer this one learns; 0: it learns labels."""
    occlusion: bool
    """Cover random blobs of half of the images, so that p falls if evidence is removed."""


class ExplanationModule(Section):
    """Ψ, the decoder that draws the mask, and the loss that it is trained by (with Prodigy).

    NEMt, equation (2) in its deletion form:
    L = -fall^exponent + λ₁ mean(mask) + μ (1 - agreement).
    NEM-U, equation (1): L = d(Φ(x), Φ(kept)) + λ₁ mean(mask) + λ₂ B.
    """

    objective: Literal["nemt", "nemt-predicted", "nem-u", "literal"]
    """"nemt": the target; "nemt-predicted": the largest output; "nem-u": the representation.

    "literal" is equation (2) as printed: the mask vanishes. For NEM-U start from the recipe nem-u.
    """
    area_weight: Positive
    """λ₁, price of a mask of the whole image, above 0 (paper: 1/2). Higher: smaller masks."""
    area_warmup: Annotated[float, Field(ge=0, le=1)]
    """Share of all steps over which λ₁ and μ rise from 0, 0 to 1. Too low: masks may vanish."""
    agreement: NotNegative
    """μ, weight of the mask following what single squares matter (0: off). Beyond the paper."""
    binary_weight: NotNegative
    """λ₂ of NEM-U (paper: 1/4). Higher: masks closer to 0 or 1. NEMt does not use it."""
    response: Response
    """What has to fall: "logit" (paper), "probability" (its code), "evidence": softplus(logit)."""
    exponent: Positive
    """Power of the fall (paper: 2), above 0. Higher: pays more for each further fall."""
    fall_only: bool
    """Reward only a fall of the response. false (paper): reward a rise, too."""
    scaled: bool
    """Divide the response by its mean on positives, so that λ₁ means the same on any classifier."""
    fill: TrainingFill
    """What replaces removed pixels: "black" (paper), "mean", "blur", or "mixed", one at random."""
    neighbourhood: Count
    """Side of the smoothing window in pixels (paper: 21); 1: no smoothing. Higher: smoother."""
    decoder: Literal["light", "unet"]
    """"unet" is the paper's, 9 million parameters; "light" has 0.1 million."""
    decoder_width: Annotated[int, Field(ge=8, le=4096, multiple_of=8)]
    """Channels of the light decoder, a multiple of 8. Higher: finer masks, more time."""
    follows: bool
    """Tell the mask the log odds of the output, and weigh it by the local probability."""
    epochs: Count
    """Epochs at most (paper: 5)."""
    patience: Count
    """Training stops after so many epochs without a better one; not if the last one is kept."""
    balanced: bool
    """Fill half of each batch with images with p above 1/2. false: every image once an epoch."""
    keep: Literal["faithful", "last", "loss"]
    """Epoch to keep by validation: the most "faithful", the "last", or the least "loss"."""


class Serving(Section):
    """How a trained mask is served. It can be changed without training, by --keep-module."""

    gamma: Positive
    """Power of the served mask, above 0; 1: as it is trained. Lower: weak parts come up."""
    full_from: Annotated[float, Field(allow_inf_nan=False)]
    """Log odds from which on a served mask has its full height. Only if the mask follows them."""


class RunSettings(Section):
    """How the work is computed. All of it changes the last digits of a result, so it is recorded.

    Another machine may need other values of threads, device and bfloat16.
    """

    batch: Count
    """Images a step over all processes (paper: 32). Halve it if memory runs out."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Seed of everything random. The same seed, threads and libraries give the same bundle."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    """CPU threads, 1 to 1024. They change the order of sums, and so the last digits."""
    device: Literal["cpu", "cuda"]
    """Processor: "cpu" or "cuda"."""
    bfloat16: bool | Literal["auto"]
    """Train in mixed precision; "auto": if the processor has instructions for it."""


class Recipe(Section):
    """A whole recipe. Raises `ValidationError`; `recipe_file.read` makes it a plain sentence."""

    data: Data
    input: Input
    augmentation: Augmentation
    target_model: TargetModel
    explanation_module: ExplanationModule
    serving: Serving
    run: RunSettings

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        module = self.explanation_module
        if module.neighbourhood > self.input.size:
            raise ValueError(
                f"explanation_module.neighbourhood = {module.neighbourhood}: no wider than the "
                f"image (input.size = {self.input.size})"
            )
        if module.objective == "nem-u" and (module.keep == "faithful" or module.follows):
            raise ValueError(
                'explanation_module.objective = "nem-u": a representation has no output to be '
                'faithful to or to follow; start from --recipe nem-u, or set keep = "last" or '
                '"loss" and follows = false'
            )
        return self

    @property
    def served_fill(self) -> Fill:
        """What takes the place of removed pixels when the evidence is weighed."""
        fill = self.explanation_module.fill
        return "blur" if fill == "mixed" else fill

    @property
    def preprocessing(self) -> Preprocessing:
        """The bundle's preprocessing."""
        return Preprocessing(**self.input.model_dump())

    def to_manifest(self) -> dict[str, JsonValue]:
        """The JSON form kept in a bundle: a table for each section."""
        return self.model_dump(mode="json")

    def values(self) -> Iterator[tuple[str, Any]]:
        """Each dotted name, such as "run.seed", with its value."""
        for section, table in self.model_dump().items():
            for name, value in table.items():
                yield f"{section}.{name}", value
