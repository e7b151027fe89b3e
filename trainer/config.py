"""What a training run is told: one frozen value, kept whole in the bundle's manifest."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from nemt_dicom.errors import TrainingError
from nemt_dicom.network import Fill
from nemt_dicom.preprocess import Preprocessing

from .objectives import Response

DEFAULT_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A recipe. Its defaults are those that the shipped bundle was trained with.

    target: the label explained. backbone: a timm model name. pretrained: start from ImageNet
    weights. size: side of the model's input in pixels. batch: images a step. seed: of everything
    random. threads: CPU threads; they change the last digits of a sum, so they are recorded too.
    bfloat16: train in mixed precision (2 to 3 times as fast here); all else is float32.

    classifier_*: fine-tuning of the target model by AdamW with a cosine schedule. average: share of
    the running average of its weights that stays at each step. patience: epochs without a better
    validation AUC before it stops. label_smoothing: 0 to 0.5. mirror: left and right may be
    exchanged by augmentation. occlusion: half of the images lose random blobs, so that p falls
    where evidence is removed and not where anything is.

    mask_*: training of the explanation module by Prodigy. area_weight: λ₁ of equation (2).
    area_warmup: share of all steps over which λ₁ rises from 0; at its full price from the start an
    untrained mask vanishes before it has found what lowers p, and does not come back.
    response, exponent, fall_only, preservation, fill: see objectives.py.
    """

    target: str = "pneumonia"
    backbone: str = DEFAULT_BACKBONE
    pretrained: bool = True
    size: int = 224
    low_percentile: float = 0.5
    high_percentile: float = 99.5
    batch: int = 32
    seed: int = 1
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"
    bfloat16: bool = True
    validation_share: float = 0.15

    classifier_epochs: int = 14
    classifier_lr: float = 1e-3
    classifier_weight_decay: float = 0.02
    average: float = 0.9
    patience: int = 5
    label_smoothing: float = 0.03
    mirror: bool = True
    occlusion: bool = True

    mask_epochs: int = 7
    decoder_width: int = 64
    neighbourhood: int = 21
    area_weight: float = 1.7
    area_warmup: float = 0.6
    response: Response = "evidence"
    exponent: float = 1.0
    fall_only: bool = True
    preservation: float = 0.0
    fill: Fill = "blur"

    def __post_init__(self) -> None:
        positive = (self.batch, self.threads, self.classifier_epochs, self.mask_epochs)
        if min(positive) < 1:
            raise TrainingError("batch, threads and epochs are at least 1")
        if not 0 <= self.label_smoothing < 0.5:
            raise TrainingError("label smoothing is at least 0 and below 0.5")
        if not (self.area_weight > 0 and self.preservation >= 0):
            raise TrainingError("the area weight is positive, the preservation weight not negative")
        if not 0 <= self.area_warmup <= 1:
            raise TrainingError("the area warm-up is a share of all steps, 0 to 1")
        if not 0 < self.validation_share < 1:
            raise TrainingError("the validation share lies between 0 and 1")

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
