"""The three numbers a bundle decides by, chosen on validation images; no box is looked at.

decision_threshold: of those whose Youden's J (sensitivity + specificity - 1) is within 0.05 of the
largest, the lowest p: on a few dozen images the curve is flat and its peak an accident, and a mask
withheld from a positive costs more than one shown, with p beside it, on a negative.
mask_threshold: the one at which most validation positives get a segment drawn, under the evidence
margin that it brings with it; of those within 0.05 of that the highest: its segments are smallest.
evidence_margin: the 95th percentile, over validation images that have a segment, of the fall of p
when that segment is moved elsewhere in the image at random.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.manifest import MaskThreshold, ThresholdRecord
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..inference import falls, soft_masks
from ..progress import Progress
from .recipe import Fill, Recipe

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
    """What one mask threshold gives for the n images that have a segment.

    rows: (n,) their numbers.
    fall: (n,) fall of p without the segment.
    area: (n,) share of the image that the segment covers.
    moved: (n, moves) fall of p without the segment moved elsewhere.
    """

    rows: NDArray[np.intp]
    fall: NDArray[np.float32]
    area: NDArray[np.float32]
    moved: NDArray[np.float32]

    @property
    def margin(self) -> float:
        """95th percentile of the fall without a segment moved elsewhere."""
        return float(np.percentile(self.moved, 95))

    def record(self, drawn_share_positives: float) -> MaskThreshold:
        """What the bundle keeps of this candidate."""
        return MaskThreshold(
            drawn_share_positives=drawn_share_positives,
            margin=self.margin,
            mean_fall=float(self.fall.mean()),
            mean_area=float(self.area.mean()),
        )


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The bundle's decisions.

    record: what they gave on the validation images; None if nothing was chosen.
    """

    decision_threshold: float
    mask_threshold: float
    evidence_margin: float
    record: ThresholdRecord | None


FIXED = Thresholds(decision_threshold=0.0, mask_threshold=0.5, evidence_margin=-1.0, record=None)
"""Of a bundle that decides nothing: it explains a representation, or the largest output."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """What the network says of the validation images, and how their segments are looked at.

    images: (N, C, S, S) float32 in [0, 1].
    probability: (N,) of the target.
    masks: (N, S, S) float32 in [0, 1], 1 = evidence.
    inside: (N, S, S) bool: where the image is, and not the black beside it.
    positive: (N,) bool: the label.
    fill: what takes the place of removed pixels.
    """

    network: ExplainedNetwork
    images: NDArray[np.float32]
    probability: NDArray[np.float32]
    masks: NDArray[np.float32]
    inside: Masks
    positive: NDArray[np.bool_]
    fill: Fill

    def level(self, threshold: float, moves: int, generator: np.random.Generator) -> Level | None:
        """What a mask threshold gives; None if no image has a segment. moves: places to compare."""
        segments = (self.masks >= threshold) & self.inside
        rows = np.flatnonzero(segments.any(axis=(1, 2)))
        if not len(rows):
            return None
        chosen = segments[rows]

        def fall(where: Masks) -> NDArray[np.float32]:
            return falls(self.network, self.images[rows], self.probability[rows], where, self.fill)

        elsewhere = [
            fall(np.stack([move(s, generator) for s in chosen]) & self.inside[rows])
            for _ in range(moves)
        ]
        return Level(
            rows=rows,
            fall=fall(chosen),
            area=chosen.mean(axis=(1, 2), dtype=np.float32),
            moved=np.stack(elsewhere, axis=1),
        )

    def drawn(self, level: Level, decision: float, among: NDArray[np.bool_]) -> float:
        """Share of these images, (N,) bool, that get a segment drawn."""
        shown = (level.fall > level.margin) & (self.probability[level.rows] >= decision)
        return float(among[level.rows[shown]].sum() / among.sum())


def choose_thresholds(
    network: ExplainedNetwork, validation: Examples, recipe: Recipe, progress: Progress
) -> Thresholds:
    """Chooses all three. Raises `TrainingError` if no validation image has a segment."""
    generator = np.random.default_rng(recipe.run.seed)
    images = validation.images
    probability, masks = soft_masks(network, images)
    answers = _Answers(
        network=network,
        images=images,
        probability=probability,
        masks=masks,
        inside=validation.inside[:, 0],
        positive=validation.labels > 0.5,
        fill=recipe.served_fill,
    )
    decision = youden(probability, validation.labels)
    decision = math.floor(decision * 1e4) / 1e4  # as it is written, and no higher
    progress.stage("thresholds", len(CANDIDATES) + 1)
    levels: dict[float, Level] = {}
    for candidate in CANDIDATES:
        level = answers.level(candidate, MOVES // 2, generator)
        if level is not None:
            levels[candidate] = level
        progress.step(f"mask >= {candidate:.1f}")
    if not levels:
        raise TrainingError("no validation image has a segment at any mask threshold")
    positive = answers.positive
    shares = {c: answers.drawn(level, decision, positive) for c, level in levels.items()}
    chosen = max(c for c, share in shares.items() if share >= max(shares.values()) - TOLERANCE)
    final = answers.level(chosen, MOVES, generator)
    progress.step()
    assert final is not None  # it has segments, as before
    return Thresholds(
        decision_threshold=decision,
        mask_threshold=chosen,
        evidence_margin=round(final.margin, 4),
        record=ThresholdRecord(
            sensitivity=float((probability[positive] >= decision).mean()),
            specificity=float((probability[~positive] < decision).mean()),
            images_with_segment=len(final.rows),
            drawn_share_positives=answers.drawn(final, decision, positive),
            drawn_share_negatives=answers.drawn(final, decision, ~positive),
            by_mask_threshold={
                str(candidate): level.record(shares[candidate])
                for candidate, level in levels.items()
            },
        ),
    )
