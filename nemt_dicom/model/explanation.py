"""The explanation of one radiograph: a mask, its evidence and its provenance."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.errors import BadOutput


class Verdict(StrEnum):
    """What may be shown of an explanation."""

    EXPLAINED = "explained"
    BELOW_THRESHOLD = "below_threshold"
    """p is below the bundle's decision threshold: there is nothing to explain."""
    NO_REGION = "no_region"
    """The mask reaches its threshold nowhere."""
    UNRELIABLE = "unreliable"
    """Occluding the segment does not lower p by more than the evidence margin."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The model that gave an explanation, and the bundle that it came in.

    model_digest: SHA-256 of what decides an explanation, 64 hexadecimal digits (`Manifest`).
    """

    target: str
    bundle_name: str
    bundle_version: str
    model_digest: str
    decision_threshold: float
    mask_threshold: float
    evidence_margin: float

    @property
    def short_digest(self) -> str:
        """The digest's first 12 digits, as shown to people."""
        return self.model_digest[:12]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Probabilities of the target, each in [0, 1].

    probability: of the image.
    occluded: with the segment replaced by the bundle's fill.
    kept: with everything but the segment replaced by the fill.
    """

    probability: float
    occluded: float
    kept: float

    @property
    def fall(self) -> float:
        """How far occluding the segment lowers the probability; negative if it rises."""
        return self.probability - self.occluded


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """An explanation in the source frame.

    mask: (rows, columns) float32 in [0, 1]; 1 = evidence for the target.
    segment: (rows, columns) bool; mask >= mask_threshold, before anything is held back.
    explain_below_threshold: the setting under which the verdict was reached.

    Raises `BadOutput` on construction if a value is NaN or infinite.
    """

    mask: NDArray[np.float32]
    segment: NDArray[np.bool_]
    evidence: Evidence
    provenance: Provenance
    explain_below_threshold: bool

    def __post_init__(self) -> None:
        numbers = (self.evidence.probability, self.evidence.occluded, self.evidence.kept)
        if not (np.isfinite(numbers).all() and np.isfinite(self.mask).all()):
            raise BadOutput("the model gave NaN or infinity")
        if self.mask.shape != self.segment.shape:
            raise BadOutput(f"mask {self.mask.shape} and segment {self.segment.shape} differ")

    @property
    def below_threshold(self) -> bool:
        """Whether p is below the decision threshold, whatever the settings."""
        return self.evidence.probability < self.provenance.decision_threshold

    @property
    def verdict(self) -> Verdict:
        """What may be shown."""
        if self.below_threshold and not self.explain_below_threshold:
            return Verdict.BELOW_THRESHOLD
        if not self.segment.any():
            return Verdict.NO_REGION
        if not self.evidence.fall > self.provenance.evidence_margin:
            return Verdict.UNRELIABLE
        return Verdict.EXPLAINED

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """(rows, columns) bool: the segment if the verdict is `EXPLAINED`, otherwise empty."""
        if self.verdict is Verdict.EXPLAINED:
            return self.segment
        return np.zeros_like(self.segment)

    def summary(self) -> dict[str, str | float | bool]:
        """The figures for `jobs show`; JSON-able, no patient data."""
        return {
            "target": self.provenance.target,
            "verdict": self.verdict.value,
            "probability": round(self.evidence.probability, 4),
            "probability_occluded": round(self.evidence.occluded, 4),
            "probability_kept": round(self.evidence.kept, 4),
            "fall": round(self.evidence.fall, 4),
            "decision_threshold": self.provenance.decision_threshold,
            "mask_threshold": self.provenance.mask_threshold,
            "evidence_margin": self.provenance.evidence_margin,
            "explain_below_threshold": self.explain_below_threshold,
            "segment_share": round(float(self.segment.mean()), 4),
            "bundle": f"{self.provenance.bundle_name} {self.provenance.bundle_version}",
            "model_digest": self.provenance.model_digest,
        }
