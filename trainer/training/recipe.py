"""What a training run is told: a recipe, kept whole in the bundle, and where things lie."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.decoders import Norm
from nemt_dicom.model.network import Fill
from nemt_dicom.model.preprocess import Preprocessing

from ..data.layouts import ALL
from .objectives import Response, TrainingFill

DEFAULT_BACKBONE = "tf_efficientnet_lite0"

MOST_THREADS = 1024

ObjectiveName = Literal["nemt", "nemt-predicted", "nem-u", "literal"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A recipe. Its defaults are what measured best; deploy/decisions.md has the figures.

    target: the label explained; with "nem-u", which explains no label, the one whose ground truth
    measures it. backbone: a timm model name. pretrained: start from ImageNet weights. size: side of
    the model's input in pixels. low_percentile, high_percentile: see `Preprocessing`. batch: images
    a step over all processes; accumulate: parts it is computed in. seed: of everything random.
    threads: CPU threads; they change the last digits of a sum, so they are recorded too. bfloat16:
    train in mixed precision, see precision.py; validation is always float32.

    classifier_*: training of the target model; optimiser "adamw" with a cosine schedule, or
    "prodigy". frozen_stages: how many of the backbone's stages keep the weights that training
    starts from, where these are not random; only their batch norms' statistics become those of
    these images. average: share of the running average of its weights
    that stays at each step, 0 for none. patience: epochs without one worth keeping before it
    stops. label_smoothing: 0 to 0.5. auxiliary: further labels that the target model answers, each
    where the data know it, or `ALL` of theirs; auxiliary_weight: of their loss. mined_weight: of
    positives whose label was mined from reports (NIH), beside labels by radiologists (RSNA), for
    the target's loss.
    teachers: how many target models are trained first, each with draws of its own; the one that is
    kept learns their mean answer instead of the labels, see teachers.py.
    mirror: left and right may be exchanged by augmentation. augment: whether there is any.
    noise: the largest standard deviation of the noise that augmentation adds.
    occlusion: half of the images lose random blobs, so that p falls where evidence is removed and
    not where anything is.

    objective: "nemt" explains the target, "nemt-predicted" the largest output, "nem-u" the
    embedding of a feature extractor, "literal" is equation (2) as printed.
    mask_*: training of the explanation module by Prodigy. mask_balanced: half of each batch are
    images with p above a half, however few they are. keep: the epoch that is kept, the one most
    "faithful" on validation positives, the "last", or the one with the least validation "loss";
    but for the last, mask_patience epochs without a better one end the training. area_weight: λ₁.
    area_warmup: share of all steps over which λ₁, and the agreement's weight with it, rise from 0;
    at its full price from the start an untrained mask vanishes before it has found what lowers p,
    and does not come back.
    binary_weight: λ₂ of NEM-U.
    response, exponent, fall_only, preservation, agreement, fill: see objectives.py. scaled: the
    response is divided by its mean on training positives. follows: the mask is told the log odds of
    the output, so that there is little of it where there is little to explain, and what is served
    is weighed by the local probability. full_from, gamma: see `Architecture`.
    sensitivity: the validation sensitivity that the decision threshold shall reach; None chooses it
    by Youden's J.
    """

    target: str = "pneumonia"
    backbone: str = DEFAULT_BACKBONE
    pretrained: bool = True
    size: int = 224
    low_percentile: float = 0.5
    high_percentile: float = 99.5
    batch: int = 32
    accumulate: int = 1
    seed: int = 1
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"
    bfloat16: bool = False
    validation_share: float = 0.15

    classifier_epochs: int = 14
    frozen_stages: int = 3
    classifier_optimiser: Literal["adamw", "prodigy"] = "adamw"
    classifier_lr: float = 1e-3
    classifier_weight_decay: float = 0.02
    average: float = 0.9
    patience: int = 5
    label_smoothing: float = 0.03
    auxiliary: tuple[str, ...] = (ALL,)
    auxiliary_weight: float = 0.3
    mined_weight: float = 0.3
    teachers: int = 5
    augment: bool = True
    mirror: bool = True
    noise: float = 0.02
    occlusion: bool = True

    objective: ObjectiveName = "nemt"
    mask_epochs: int = 3
    mask_balanced: bool = True
    keep: Literal["faithful", "last", "loss"] = "faithful"
    mask_patience: int = 5
    decoder: Literal["light", "unet"] = "light"
    decoder_width: int = 64
    decoder_norm: Norm = "batch"
    neighbourhood: int = 21
    area_weight: float = 1.5
    area_warmup: float = 0.4
    binary_weight: float = 0.25
    response: Response = "evidence"
    exponent: float = 1.0
    fall_only: bool = True
    preservation: float = 0.0
    agreement: float = 4.0
    fill: TrainingFill = "mixed"
    follows: bool = True
    scaled: bool = True
    full_from: float | None = 0.0
    gamma: float = 0.5
    sensitivity: float | None = None

    def _require_numbers(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise TrainingError(f"{name} is {value}: give a finite number")
        try:
            _ = self.preprocessing
        except ValueError as error:
            raise TrainingError(
                "the size is 32 to 2048 pixels, the percentiles are 0 to 100, the low one below "
                "the high one"
            ) from error

    def __post_init__(self) -> None:
        self._require_numbers()
        counts = (
            self.batch,
            self.accumulate,
            self.threads,
            self.classifier_epochs,
            self.mask_epochs,
            self.neighbourhood,
        )
        for wrong, text in (
            (
                min(counts) < 1,
                "batch, accumulate, threads, neighbourhood and epochs are at least 1",
            ),
            (self.threads > MOST_THREADS, f"there are at most {MOST_THREADS} threads"),
            (not 0 <= self.seed < 2**63, "the seed is at least 0 and below 2^63"),
            (self.neighbourhood > self.size, "the neighbourhood is no wider than the image"),
            (self.accumulate > self.batch, "a batch cannot be computed in more parts than images"),
            (not 0 <= self.label_smoothing < 0.5, "label smoothing is at least 0 and below 0.5"),
            (
                min(self.frozen_stages, self.teachers) < 0,
                "the numbers of frozen stages and of teachers are not negative",
            ),
            (
                min(self.classifier_lr, self.gamma, self.exponent, self.area_weight) <= 0,
                "the classifier's step size, gamma, the exponent and the area weight are positive",
            ),
            (
                min(
                    self.preservation,
                    self.agreement,
                    self.binary_weight,
                    self.auxiliary_weight,
                    self.mined_weight,
                    self.classifier_weight_decay,
                    self.noise,
                )
                < 0,
                "the weights of preservation, agreement, binary masks, auxiliary and mined labels, "
                "the weight decay and the noise are not negative",
            ),
            (not 0 <= self.area_warmup <= 1, "the area warm-up is a share of all steps, 0 to 1"),
            (not 0 <= self.average < 1, "the running average keeps a share of at least 0, below 1"),
            (not 0 < self.validation_share < 1, "the validation share lies between 0 and 1"),
            (
                self.sensitivity is not None and not 0 < self.sensitivity <= 1,
                "the sensitivity lies above 0 and is at most 1",
            ),
            (
                self.objective == "nem-u" and self.keep == "faithful",
                "faithfulness is of a target, and a representation has none: keep the last epoch "
                "or the one with the least loss",
            ),
            (
                self.decoder_width < 8 or self.decoder_width % 8 != 0,
                "the decoder's width is a positive multiple of 8",
            ),
        ):
            if wrong:
                raise TrainingError(text)

    @property
    def served_fill(self) -> Fill:
        """What takes the place of removed pixels when the evidence is weighed."""
        return "blur" if self.fill == "mixed" else self.fill

    @property
    def preprocessing(self) -> Preprocessing:
        """The bundle's preprocessing."""
        return Preprocessing(
            size=self.size,
            low_percentile=self.low_percentile,
            high_percentile=self.high_percentile,
        )

    def to_manifest(self) -> dict[str, Any]:
        """The JSON form kept in a bundle."""
        return asdict(self)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "backbone": "resnet50",
        "pretrained": False,
        "frozen_stages": 0,
        "low_percentile": 0.0,
        "high_percentile": 100.0,
        "classifier_epochs": 10,
        "classifier_optimiser": "prodigy",
        "classifier_lr": 1.0,
        "classifier_weight_decay": 0.01,
        "average": 0.0,
        "patience": 10,
        "label_smoothing": 0.0,
        "noise": 0.0,
        "occlusion": False,
        "mask_epochs": 5,
        "mask_balanced": False,
        "keep": "last",
        "decoder": "unet",
        "area_weight": 0.5,
        "area_warmup": 0.0,
        "response": "probability",
        "exponent": 2.0,
        "fall_only": False,
        "fill": "black",
        "agreement": 0.0,
        "scaled": False,
        "follows": False,
        "full_from": None,
        "gamma": 1.0,
        "auxiliary": (),
        "mined_weight": 1.0,
        "teachers": 0,
    },
}
"""Recipes by name, as what differs from the defaults. "paper": section 4.2, with the response of
the authors' code."""

NEM_U: dict[str, dict[str, Any]] = {
    "default": {
        "area_weight": 0.5,
        "area_warmup": 0.0,
        "fill": "black",
        "follows": False,
        "scaled": False,
        "full_from": None,
        "gamma": 1.0,
        "mask_balanced": False,
        "mask_epochs": 12,
        "keep": "loss",
        "teachers": 0,
    },
    "paper": {"area_weight": 0.125, "neighbourhood": 1},
}
"""What the objective "nem-u" brings along to each preset. The paper smooths in the supervised case
only. Without labels there is nothing that more epochs would learn by heart."""


OF_THE_TARGET_MODEL = (
    "backbone", "pretrained", "size", "low_percentile", "high_percentile", "validation_share",
    "classifier_epochs", "frozen_stages", "classifier_optimiser", "classifier_lr",
    "classifier_weight_decay", "average", "patience", "label_smoothing", "auxiliary",
    "auxiliary_weight", "mined_weight", "teachers", "occlusion",
)  # fmt: skip
"""What of a recipe a target model takes along into the bundle of another explanation module."""


FORMERLY: dict[str, Any] = {"mask_balanced": False, "keep": "last", "teachers": 0}
"""What recipes did that do not say it."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run reads and writes, what weights it starts from, and how it runs.

    folders: the data. out: the new bundle. cache: of preprocessed images. target_model: weights of
    a trained target model, and output, the index or the name of the output explained, of
    output_names. bundle: the one that target model is taken from, where it is; keep_module: and
    its explanation module, so that nothing is trained. initial_weights: weights that training of
    the target model starts from.
    """

    folders: tuple[Path, ...]
    out: Path
    cache: Path
    target_model: Path | None = None
    bundle: Bundle | None = None
    keep_module: bool = False
    output: str | None = None
    output_names: tuple[str, ...] = ()
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    initial_weights: Path | None = None
    resume: bool = False
    skip_bad: bool = False
    tensorboard: bool = False
    compile: bool = False
