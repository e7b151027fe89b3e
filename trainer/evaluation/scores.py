"""Scores of attribution methods an image, and the table of figures that is made of them.

The ground truth is a region an image: boxes, lesion masks, whatever a set has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Images, Regions
from ..metrics import (
    Probability,
    Scores,
    complexity,
    faithfulness,
    features_in_step,
    min_max,
    overlap,
    pointing_game,
    relevance_mass,
    relevance_rank,
    sparseness,
)
from ..statistics import mean, ratio
from . import removal
from .maps import Attributed, seeded_subset
from .methods import NEMT
from .result_store import Arrays, ResultStore, digest

Row = dict[str, Any]
Columns = dict[str, Scores]
"""The name of a metric -> a score of each image (N,), NaN where there is none."""

CHUNK = 16
"""Images between two savings of their scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """The images that all methods are compared on, and how the target model is asked of them.

    images: (N, C, S, S) in [0, 1]. truth: (N, S, S), where the evidence is; None where the data
    do not say. probability: of the output explained, or of all with `index` (N,), on `device`;
    None for a representation, which has none. threshold: `mask_threshold`. thorough: whether
    curves of removal and ROAD are measured.
    """

    images: Images
    truth: Regions | None
    probability: Probability | None
    index: NDArray[np.intp] | None = None
    threshold: float = 0.5
    thorough: bool = False
    device: str = "cpu"
    store: ResultStore | None = None

    def answer(self, row: int) -> removal.Response:
        """The probability of the output that is explained of one image."""
        assert self.probability is not None
        if self.index is None:
            return self.probability
        return lambda images: self.probability(images)[:, self.index[row]]  # type: ignore[misc,index]


def describe_metrics(side: int) -> dict[str, str]:
    """How each metric is measured, for a report. side: of the images, in pixels."""
    quantus, grad_cam = (f"{name} {version(name)}" for name in ("quantus", "grad-cam"))
    same = f"our own code, equal to {quantus}"
    curve = f"our own code; {removal.STEPS} steps, {' and '.join(removal.FILLS)}"
    return {
        "RelevanceRankAccuracy": f"{same}; hits / k, union of all boxes or the lesion's mask",
        "RelevanceMassAccuracy": f"{same}; of the min-max normalised map",
        "PointingGame": same,
        "Complexity": f"{quantus}; normalise=False, abs=False, for maps come normalised",
        "Sparseness": f"{quantus}; the same",
        "FaithfulnessEstimate": f"{quantus}; features_in_step={features_in_step(side)}, "
        "perturb_baseline='black', Pearson's correlation, of the probability",
        "IoU": "our own code; the mask at the bundle's mask_threshold, other maps min-max "
        "normalised at the same",
        "deletion, insertion": f"{curve}; area under p, 0 to 1",
        "ROAD": f"{grad_cam}, ROADCombined; {', '.join(map(str, removal.ROAD_SHARES))} % removed",
    }


def scores(of: Evaluated, attributed: Attributed, *, gated: bool = False) -> Columns:
    """Every metric of one method's maps, (N,) each.

    gated: whether the map is a mask in [0, 1] itself, to which `threshold` applies as it is; other
    maps are min-max normalised first. `relevance_mass_less_others` and `relevance_rank_less_others`
    are the score of a map on its own image less the mean score, on that image's truth, of the
    method's maps of all other images: what a map knows of this image and not of such images.
    """
    columns: Columns = {}
    rows = attributed.rows
    if not len(rows):
        return columns
    maps = list(attributed.maps)

    def put(name: str, values: Scores, at: NDArray[np.intp] = rows) -> None:
        columns[name] = np.full(len(of.images), np.nan)
        columns[name][at] = values

    if of.truth is not None:
        truth = list(of.truth[rows])
        for name, score in (("relevance_mass", relevance_mass), ("relevance_rank", relevance_rank)):
            each = score(maps, truth)  # (maps, images)
            own, count = np.diag(each), len(each)
            put(name, own)
            if count > 1:
                put(f"{name}_less_others", own - (each.sum(axis=0) - own) / (count - 1))
        put("pointing_game", pointing_game(maps, truth))
        segments = [(m if gated else min_max(m)) >= of.threshold for m in maps]
        put("iou", overlap(segments, truth))
    put("complexity", complexity(maps))
    put("sparseness", sparseness(maps))
    if of.probability is not None:
        put("faithfulness", _each(of, attributed, "faithfulness", rows, _faithfulness))
        if of.thorough:
            for name, values in _removal(of, attributed).items():
                put(name, values)
            subset = np.intersect1d(rows, seeded_subset(len(of.images)))
            put("road", _each(of, attributed, "road", subset, _road), subset)
    return columns


def mean_curves(of: Evaluated, attributed: Attributed) -> dict[str, NDArray[np.float64]]:
    """The mean deletion and insertion curve of one method for each fill, (STEPS + 1,) each."""
    found: dict[str, list[NDArray[Any]]] = {}
    for row in attributed.rows.tolist():
        for name, curve in _curves(of, attributed, row).items():
            found.setdefault(name, []).append(curve)
    return {name: np.mean(each, axis=0) for name, each in found.items()}


def _removal(of: Evaluated, attributed: Attributed) -> Columns:
    each = [_curves(of, attributed, row) for row in attributed.rows.tolist()]
    return {
        name: np.array([removal.area_under(curves[name]) for curves in each]) for name in each[0]
    }


def _curves(of: Evaluated, attributed: Attributed, row: int) -> Arrays:
    key = _key(of, attributed, "removal", row)
    known = of.store.load(*key) if of.store else None
    if known is None:
        known = {}
        for fill in removal.FILLS:
            both = removal.curves(
                attributed.found[row], of.images[row], of.answer(row), fill, of.device
            )
            known |= {f"deletion_{fill}": both.deletion, f"insertion_{fill}": both.insertion}
        if of.store:
            of.store.save(known, *key)
    return known


def _faithfulness(of: Evaluated, attributed: Attributed, rows: Sequence[int]) -> Scores:
    assert of.probability is not None
    return faithfulness(
        [attributed.found[row] for row in rows],
        of.images[rows],
        of.probability,
        index=None if of.index is None else of.index[rows],
        device=of.device,
    )


def _road(of: Evaluated, attributed: Attributed, rows: Sequence[int]) -> Scores:
    return np.array(
        [
            removal.road(attributed.found[row], of.images[row], of.answer(row), of.device)
            for row in rows
        ]
    )


def _each(
    of: Evaluated,
    attributed: Attributed,
    kind: str,
    rows: NDArray[np.intp],
    score: Callable[[Evaluated, Attributed, Sequence[int]], Scores],
) -> Scores:
    """A score of each row's map; only those that the store lacks are computed, `CHUNK` at once."""
    found = np.full(len(of.images), np.nan)
    lacking = []
    for row in rows.tolist():
        known = of.store.load(*_key(of, attributed, kind, row)) if of.store else None
        if known is None:
            lacking.append(row)
        else:
            found[row] = known["score"]
    for start in range(0, len(lacking), CHUNK):
        chunk = lacking[start : start + CHUNK]
        found[chunk] = score(of, attributed, chunk)
        for row in chunk:
            if of.store:
                of.store.save({"score": found[row]}, *_key(of, attributed, kind, row))
    return found[rows]


def _key(of: Evaluated, attributed: Attributed, kind: str, row: int) -> tuple[str, ...]:
    index = "" if of.index is None else str(of.index[row])
    code = of.store.code.scores if of.store else ""
    return kind, code, index, digest(attributed.found[row]), digest(of.images[row])


def methods_table(columns: Mapping[str, Columns], patients: Sequence[str]) -> dict[str, Row]:
    """A row of figures for each method, JSON-able.

    Rows other than the explanation module's also have `nemt_less`, the explanation module's figure
    less this method's, paired by image, and `nemt_over`, the ratio of the two means on the same
    images. A figure that is defined for no image is absent; `n` says for how many it is.
    """
    found: dict[str, Row] = {}
    for method, own in columns.items():
        found[method] = _present({name: mean(values, patients) for name, values in own.items()})
        if NEMT in columns and method != NEMT:
            found[method] |= _against(columns[NEMT], own, patients)
    return found


def _against(ours: Columns, theirs: Columns, patients: Sequence[str]) -> dict[str, Row]:
    """The explanation module less, and over, another method."""
    both = [name for name in ours if name in theirs]
    less: dict[str, dict[str, float] | None] = {
        name: mean(ours[name] - theirs[name], patients) for name in both
    }
    over: dict[str, dict[str, float] | None] = {
        name: ratio(ours[name], theirs[name], patients)
        for name in ("relevance_mass", "relevance_rank")
        if name in both
    }
    return {"nemt_less": _present(less), "nemt_over": _present(over)}


def _present(row: Mapping[str, dict[str, float] | None]) -> Row:
    return {name: value for name, value in row.items() if value is not None}
