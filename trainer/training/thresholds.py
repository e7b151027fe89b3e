"""The three numbers a bundle decides by, chosen on validation images; no box is looked at.

decision_threshold: where a sensitivity is asked for, the highest p that reaches it; else, of those
whose Youden's J (sensitivity + specificity - 1) is within 0.05 of
the largest, the lowest p: on a few dozen images the curve is flat and its peak an accident, and a
mask withheld from a positive costs more than one shown, with p beside it, on a negative.
mask_threshold: the one at which most validation positives get a segment drawn, under the evidence
margin that it brings with it; of those within 0.05 of that the highest: its segments are smallest.
evidence_margin: the 95th percentile, over validation images that have a segment, of the fall of p
when that segment is moved elsewhere in the image at random.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..inference import falls, soft_masks
from ..progress import Progress
from .recipe import TrainingConfig

CANDIDATES = tuple(round(0.1 * i, 1) for i in range(1, 10))
TOLERANCE = 0.05
OVERLAP = 0.25
"""Share of a moved segment that may lie where it was: what overlaps more is not elsewhere."""
TRIES = 40
MOVES = 8
"""Random places a segment is moved to for the evidence margin; half of them to choose by."""

Masks = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """What one mask threshold gives. rows: the images that have a segment; the rest are of these.

    own, area: fall of p without the segment, share of the image. moved: the falls, (n, moves), with
    the segment moved elsewhere.
    """

    rows: NDArray[np.intp]
    own: NDArray[np.float32]
    area: NDArray[np.float32]
    moved: NDArray[np.float32]

    @property
    def margin(self) -> float:
        """95th percentile of the fall when a segment is moved elsewhere."""
        return float(np.percentile(self.moved, 95))


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The bundle's decisions, and what they gave on the validation images."""

    decision_threshold: float
    mask_threshold: float
    evidence_margin: float
    found: dict[str, Any]


FIXED = Thresholds(decision_threshold=0.0, mask_threshold=0.5, evidence_margin=-1.0, found={})
"""Of a bundle that decides nothing: one that explains a representation or whatever is predicted."""


def for_sensitivity(
    scores: NDArray[np.float32], labels: NDArray[np.float32], sensitivity: float
) -> float:
    """The highest threshold that at least this share of the positives reaches."""
    positive = np.sort(scores[labels > 0.5])[::-1]
    return float(positive[int(np.ceil(sensitivity * len(positive) - 1e-9)) - 1])


def youden(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """The lowest threshold, midway between two scores, whose J is within TOLERANCE of the best."""
    values = np.unique(scores)
    between = (values[1:] + values[:-1]) / 2
    if not len(between):
        raise TrainingError("the classifier gives every validation image the same probability")
    positive, negative = scores[labels > 0.5], scores[labels < 0.5]
    gain = np.array([(positive >= t).mean() - (negative >= t).mean() for t in between])
    return float(between[gain >= gain.max() - TOLERANCE].min())


def move(segment: Masks, generator: np.random.Generator) -> Masks:
    """The same segment (S, S) elsewhere: rolled over the edges, so that its area stays.

    Elsewhere: at most OVERLAP of it lies where it was. Of a segment too large for that, the place
    with the least overlap of TRIES random ones.
    """
    side, area = segment.shape[-1], max(1, int(segment.sum()))
    best, least = segment, 2.0
    for _ in range(TRIES):
        moved = np.roll(segment, tuple(generator.integers(side, size=2)), axis=(0, 1))
        overlap = float((moved & segment).sum()) / area
        if overlap < least:
            best, least = moved, overlap
        if overlap <= OVERLAP:
            break
    return best


def choose_thresholds(
    network: ExplainedNetwork, validation: Examples, config: TrainingConfig, progress: Progress
) -> Thresholds:
    """Chooses all three. Raises `TrainingError` where no validation image has a segment."""
    generator = np.random.default_rng(config.seed)
    images = validation.images
    probability, masks = soft_masks(network, images)
    inside = validation.inside[:, 0]
    decision = (
        youden(probability, validation.labels)
        if config.sensitivity is None
        else for_sensitivity(probability, validation.labels, config.sensitivity)
    )
    decision = math.floor(decision * 1e4) / 1e4  # as it is written, and no higher
    positive = validation.labels > 0.5

    def look(level: float, moves: int) -> Level | None:
        segments = (masks >= level) & inside
        rows = np.flatnonzero(segments.any(axis=(1, 2)))
        if not len(rows):
            return None
        chosen = segments[rows]

        def fall(where: Masks) -> NDArray[np.float32]:
            return falls(network, images[rows], probability[rows], where, config.served_fill)

        elsewhere = [
            fall(np.stack([move(s, generator) for s in chosen]) & inside[rows])
            for _ in range(moves)
        ]
        return Level(
            rows=rows,
            own=fall(chosen),
            area=chosen.mean(axis=(1, 2), dtype=np.float32),
            moved=np.stack(elsewhere, axis=1),
        )

    def drawn(level: Level, of: NDArray[np.bool_]) -> float:
        shown = (level.own > level.margin) & (probability[level.rows] >= decision)
        return float(of[level.rows[shown]].sum() / of.sum())

    progress.stage("thresholds", len(CANDIDATES) + 1)
    found: dict[float, Level] = {}
    for candidate in CANDIDATES:
        level = look(candidate, MOVES // 2)
        if level is not None:
            found[candidate] = level
        progress.step(f"mask >= {candidate:.1f}")
    if not found:
        raise TrainingError("no validation image has a segment at any mask threshold")
    shares = {candidate: drawn(level, positive) for candidate, level in found.items()}
    chosen = max(c for c, share in shares.items() if share >= max(shares.values()) - TOLERANCE)
    final = look(chosen, MOVES)
    progress.step()
    assert final is not None  # it was found above
    return Thresholds(
        decision_threshold=decision,
        mask_threshold=chosen,
        evidence_margin=round(final.margin, 4),
        found={
            "sensitivity": float((probability[positive] >= decision).mean()),
            "specificity": float((probability[~positive] < decision).mean()),
            "images_with_segment": len(final.rows),
            "drawn_share_positives": drawn(final, positive),
            "drawn_share_negatives": drawn(final, ~positive),
            "by_mask_threshold": {
                str(c): {
                    "drawn_share_positives": shares[c],
                    "margin": level.margin,
                    "mean_fall": float(level.own.mean()),
                    "mean_area": float(level.area.mean()),
                }
                for c, level in found.items()
            },
        },
    )
