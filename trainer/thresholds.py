"""The three numbers a bundle decides by, chosen on validation images; no box is looked at.

decision_threshold: the p of largest Youden's J (sensitivity + specificity - 1).
mask_threshold: the one whose segments explain best: over validation positives that would be drawn,
the largest mean of fall(segment) - fall(the same segment moved elsewhere).
evidence_margin: the 95th percentile, over validation images that have a segment, of the fall of p
when that segment is moved elsewhere in the image at random.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.errors import TrainingError
from nemt_dicom.network import ExplainedNetwork, Fill, filled, remove

from .datasets import Examples
from .explanation import soft_masks
from .progress import Progress

CANDIDATES = tuple(round(0.1 * i, 1) for i in range(1, 10))
MOVES = 8
"""Random places a segment is moved to for the evidence margin; a quarter of them to choose by."""

Masks = NDArray[np.bool_]


_Falls = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""Of segments: fall (N,), falls when moved (N, moves), share of the image (N,)."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The bundle's decisions, and what they gave on the validation images."""

    decision_threshold: float
    mask_threshold: float
    evidence_margin: float
    found: dict[str, Any]


def youden(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """The threshold of largest sensitivity + specificity - 1, midway between two scores."""
    values = np.unique(scores)
    between = (values[1:] + values[:-1]) / 2
    if not len(between):
        raise TrainingError("the classifier gives every validation image the same probability")
    positive, negative = scores[labels > 0.5], scores[labels < 0.5]
    gain = [(positive >= t).mean() - (negative >= t).mean() for t in between]
    return float(between[int(np.argmax(gain))])


def move(segment: Masks, generator: np.random.Generator) -> Masks:
    """The same segment (S, S) elsewhere: rolled over the edges, so that its area stays.

    Along at least one axis it moves by an eighth of the side or more (28 of 224 pixels, wider than
    the smoothing window), so that it is not where it was.
    """
    side = segment.shape[-1]
    while True:
        down, right = generator.integers(side, size=2)
        if max(min(down, side - down), min(right, side - right)) >= side // 8:
            return np.roll(segment, (down, right), axis=(0, 1))


@torch.inference_mode()
def falls(
    network: ExplainedNetwork,
    images: NDArray[np.float32],
    probability: NDArray[np.float32],
    segments: Masks,
    fill: Fill,
) -> NDArray[np.float32]:
    """Fall of p (N,) when the segments (N, S, S) are occluded in the images (N, 1, S, S)."""
    device = next(network.parameters()).device
    occluded = []
    for i in range(0, len(images), 32):
        image = torch.from_numpy(images[i : i + 32]).to(device)
        segment = torch.from_numpy(segments[i : i + 32, None].astype(np.float32)).to(device)
        gone = remove(image, segment, filled(image, fill))
        occluded.append(network.probability(gone).cpu().numpy())
    return probability - np.concatenate(occluded) if occluded else probability


def choose_thresholds(
    network: ExplainedNetwork, validation: Examples, fill: Fill, seed: int, progress: Progress
) -> Thresholds:
    """Chooses all three. Raises `TrainingError` where no validation image has a segment."""
    generator = np.random.default_rng(seed)
    probability, masks = soft_masks(network, validation.images)
    inside = validation.inside[:, 0]
    decision = youden(probability, validation.labels)
    positives = np.flatnonzero((probability >= decision) & (validation.labels > 0.5))

    def own_and_moved(rows: NDArray[np.intp], level: float, moves: int) -> _Falls:
        segments = (masks[rows] >= level) & inside[rows]
        images, p = validation.images[rows], probability[rows]
        own = falls(network, images, p, segments, fill)
        moved = [
            falls(network, images, p, np.stack([move(s, generator) for s in segments]), fill)
            for _ in range(moves)
        ]
        return own, np.stack(moved, axis=1), segments.mean(axis=(1, 2), dtype=np.float32)

    progress.stage("thresholds", len(CANDIDATES) + 1)
    table: dict[float, dict[str, float]] = {}
    for level in CANDIDATES:
        rows = positives[((masks[positives] >= level) & inside[positives]).any(axis=(1, 2))]
        if len(rows):
            own, moved, area = own_and_moved(rows, level, MOVES // 4)
            share = len(rows) / len(positives)
            table[level] = {
                "excess": share * float((own - moved.mean(axis=1)).mean()),
                "fall": float(own.mean()),
                "area": float(area.mean()),
            }
        progress.step(f"mask >= {level:.2f}")
    if not table:
        raise TrainingError("no validation image has a segment at any mask threshold")
    level = max(table, key=lambda t: table[t]["excess"])
    rows = np.flatnonzero(((masks >= level) & inside).any(axis=(1, 2)))
    own, moved, area = own_and_moved(rows, level, MOVES)
    margin = float(np.percentile(moved, 95))
    progress.step()
    drawn = rows[(own > margin) & (probability[rows] >= decision)]
    positive, negative = validation.labels > 0.5, validation.labels < 0.5
    return Thresholds(
        decision_threshold=round(decision, 4),
        mask_threshold=level,
        evidence_margin=round(margin, 4),
        found={
            "sensitivity": float((probability[positive] >= decision).mean()),
            "specificity": float((probability[negative] < decision).mean()),
            "images_with_segment": len(rows),
            "drawn_share_positives": float(positive[drawn].sum() / positive.sum()),
            "drawn_share_negatives": float(negative[drawn].sum() / negative.sum()),
            "by_mask_threshold": {str(t): row for t, row in table.items()},
        },
    )
