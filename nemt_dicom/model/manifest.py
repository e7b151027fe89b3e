"""`manifest.json` of a bundle, schema 3, as frozen values, and the one way to write it.

Fields at the top decide an explanation: the model digest is made from them. `training` and `data`
describe how the model was made, for people, for the model card and for the trainer.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from nemt_dicom.model.evaluation import CodeState, Frozen
from nemt_dicom.model.network import Fill

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
MODEL_CARD = "MODEL_CARD.md"
WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "golden.dcm", "golden.safetensors", MODEL_CARD)
"""The files of every bundle. An evaluated bundle has EVALUATION, too."""

Probability = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Epoch(Frozen):
    """An epoch of a training run.

    part: the stage.
    number: from 1.
    figures: by name; a figure that is not finite is left out.
    """

    part: str
    number: int
    figures: dict[str, float]


class Parameters(Frozen):
    """Numbers of weights."""

    target_model: int
    explanation_module: int


class MaskThreshold(Frozen):
    """Results of one candidate mask threshold on the validation images.

    drawn_share_positives: share of positives with a drawn segment.
    margin: the evidence margin that belongs to it.
    mean_fall: mean fall of p without the segment.
    mean_area: mean share of the image.
    """

    drawn_share_positives: float
    margin: float
    mean_fall: float
    mean_area: float


class ThresholdRecord(Frozen):
    """Results of the chosen thresholds on the validation images.

    by_mask_threshold: every candidate, by its value.
    """

    sensitivity: float
    specificity: float
    images_with_segment: int
    drawn_share_positives: float
    drawn_share_negatives: float
    by_mask_threshold: dict[str, MaskThreshold]


class Parent(Frozen):
    """The bundle that a target model was taken from, and a record of its training.

    digest: its model digest; for a bundle of a release before 0.8, the SHA-256 of its manifest.
    data: fingerprint of the data that its networks were trained on; None if their data differ.
    module_kept: whether its explanation module was taken, too.
    target_model_file, initial_weights_file: SHA-256 of the files that its networks began with.
        If the parent took its target model from another bundle, they are that bundle's.
    epochs: of its training, as far as the new bundle holds the result.
    """

    name: str
    version: str
    digest: str
    data: str | None
    module_kept: bool
    code: CodeState | None
    device: str | None
    target_model_file: str | None
    initial_weights_file: str | None
    epochs: tuple[Epoch, ...]


class Training(Frozen):
    """How a bundle was made.

    recipe: the recipe as the trainer writes it; the service does not read it.
    target_model_file, initial_weights_file: SHA-256 of files of weights that training began with.
    parent: the bundle that the target model was taken from.
    thresholds: None if the bundle explains no fixed target.
    libraries: versions that decide the bits.
    minutes: since the run began or was resumed.
    weights: how they are stored.
    half_precision_changes_answer: the largest change of the answer for a validation image; None if
        the answer of float16 weights is not finite.
    """

    recipe: dict[str, Any]
    target_model_file: str | None
    initial_weights_file: str | None
    parent: Parent | None
    thresholds: ThresholdRecord | None
    libraries: dict[str, str]
    parameters: Parameters
    minutes: float
    device: str
    processes: int
    resumed: bool
    code: CodeState
    epochs: tuple[Epoch, ...]
    weights: Literal["float16", "float32"]
    half_precision_changes_answer: float | None


class SplitCounts(Frozen):
    """Numbers of a split of one source."""

    images: int
    positives: int
    patients: int


class SeenPatients(Frozen):
    """Salted hashes of the patients that a bundle was trained on or chosen by.

    hashes: in order, with spaces between.
    whole: whether they are all patients that the networks have seen.
    """

    salt: str
    hashes: str
    whole: bool


class TrainingData(Frozen):
    """The data of a training run.

    label: the canonical name of the target in the data.
    splits: counts by "SOURCE SPLIT".
    fingerprint: SHA-256 of names and labels.
    seen: None for a bundle of a release before 0.6.
    """

    sources: tuple[str, ...]
    label: str
    splits: dict[str, SplitCounts]
    fingerprint: str
    notes: tuple[str, ...]
    seen: SeenPatients | None


class Description(Frozen):
    """The description of a bundle by its maker. There are no defaults: a missing key is an error.

    name: of the bundle, for people.
    version: the release that trained it.
    decision_threshold: acts on the probability p; below it nothing is drawn.
    mask_threshold: makes the mask a segment.
    evidence_margin: how far p must fall when the segment is occluded.
    fill: the pixels that replace occluded pixels.
    training: None for a bundle that the trainer did not make.
    data: likewise.
    """

    name: str
    version: str
    target: str
    source_kinds: tuple[Literal["dicom", "picture", "photograph"], ...]
    decision_threshold: Probability
    mask_threshold: Annotated[float, Field(gt=0, lt=1)]
    evidence_margin: Annotated[float, Field(ge=-1, le=1)]
    fill: Fill
    preprocessing: dict[str, Any]
    training: Training | None
    data: TrainingData | None


class Manifest(Description):
    """`manifest.json`: the description, the architecture, and the SHA-256 of every file.

    sha256: by file name, the manifest's included.
    """

    schema_version: Literal[3]
    architecture: dict[str, Any]
    sha256: dict[str, Sha256]

    @property
    def evaluated(self) -> bool:
        """Whether the bundle has figures of `nemt-eval`."""
        return EVALUATION in self.sha256

    @property
    def model_digest(self) -> str:
        """SHA-256 of everything that decides an explanation, and of nothing else.

        It is made from the values in the file, not from the models of this release: a field that a
        later release adds with a default changes no digest.
        """
        decides = {
            "weights": self.sha256[WEIGHTS],
            "architecture": self.architecture,
            "preprocessing": self.preprocessing,
            "target": self.target,
            "decision_threshold": self.decision_threshold,
            "mask_threshold": self.mask_threshold,
            "evidence_margin": self.evidence_margin,
            "fill": self.fill,
        }
        text = json.dumps(decides, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def canonical(content: dict[str, Any], *, allow_nan: bool = False) -> bytes:
    """The one form of a bundle's JSON. Raises `ValueError` for NaN and infinity."""
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=allow_nan) + "\n").encode()


def signed(content: dict[str, Any], *, allow_nan: bool = False) -> bytes:
    """The bytes of a manifest with its SHA-256, which is computed while its entry is empty."""

    def written(digest: str) -> bytes:
        sha256 = {**content["sha256"], MANIFEST: digest}
        return canonical({**content, "sha256": sha256}, allow_nan=allow_nan)

    return written(hashlib.sha256(written("")).hexdigest())
