"""Scores of attribution methods for each image, and the figures that are made of them.

The ground truth is a region of each image: the union of its boxes, or a lesion mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.model.evaluation import Scores

from ..arrays import Images, Regions
from ..metrics import (
    PerImage,
    Probability,
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
from ..statistics import Patients, mean, ratio
from . import removal
from .maps import Attributed
from .result_store import Arrays, ResultStore, digest
from .settings import NEMT, EvaluationSettings
from .subset import subset

Columns = dict[str, PerImage]
"""The name of a metric, as in `Scores` -> a score of each image (N,), NaN if there is none."""

INTERVAL, SLOW_METHODS = "interval", "slow methods"
"""Keys of two remarks among the descriptions of the metrics."""
CHUNK = 16
"""Images between two savings of their scores."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """The images that all methods are compared on, and how the target model is asked about them.

    images: (N, C, S, S) in [0, 1].
    truth: (N, S, S), where the evidence is; None if the data do not say.
    probability: of the explained output, or of all outputs if there is an `index`; on `device`.
        None for a representation, which has none.
    index: (N,), which output is explained of each image.
    threshold: the bundle's `mask_threshold`.
    """

    images: Images
    truth: Regions | None
    probability: Probability | None
    index: NDArray[np.intp] | None = None
    threshold: float = 0.5
    device: str = "cpu"
    store: ResultStore | None = None
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)

    def response(self, row: int) -> removal.Response:
        """The probability of the output that is explained of one image."""
        probability, index = self.probability, self.index
        if probability is None:
            raise ValueError("a representation has no probability")
        if index is None:
            return probability
        return lambda images: probability(images)[:, index[row]]


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """The figures of one method's maps; see `MethodResult` for the two comparisons."""

    scores: Scores
    nemt_less: Scores | None = None
    nemt_over: Scores | None = None


def describe_metrics(side: int, settings: EvaluationSettings) -> dict[str, str]:
    """How each metric is measured, for a report. side: of the images, in pixels."""
    quantus, grad_cam = (f"{name} {version(name)}" for name in ("quantus", "grad-cam"))
    same = f"our own code, equal to {quantus}"
    curve = f"our own code; {settings.removal_steps} steps, {' and '.join(removal.FILLS)}"
    return {
        "RelevanceRankAccuracy": f"{same}; hits / k, union of all boxes or the lesion's mask",
        "RelevanceMassAccuracy": f"{same}; of the min-max normalised map",
        "PointingGame": same,
        "Complexity": f"{quantus}; normalise=False, abs=False, because maps come normalised",
        "Sparseness": f"{quantus}; the same",
        "FaithfulnessEstimate": f"{quantus}; features_in_step={features_in_step(side)}, "
        "perturb_baseline='black', Pearson's correlation, of the probability",
        "IoU": "our own code; the mask at the bundle's mask_threshold, other maps min-max "
        "normalised at the same threshold",
        "deletion, insertion": f"{curve}; area under p, 0 to 1",
        "ROAD": f"{grad_cam}, ROADCombined; {', '.join(map(str, removal.ROAD_SHARES))} % removed; "
        f"at most {settings.subset} images",
        "seconds": f"one image at a time, {settings.timing_rounds} images; then "
        f"{settings.timing_batch} in a batch",
        INTERVAL: f"95 % bootstrap interval over patients, {settings.resamples} resamples",
        SLOW_METHODS: "without a GPU, a method that takes more than "
        f"{settings.slow_seconds:g} s an image is asked for {settings.subset} images only, chosen "
        "by a seed",
    }


def scores(of: Compared, attributed: Attributed, *, is_mask: bool = False) -> Columns:
    """Every metric of one method's maps, (N,) each; nothing if it has no map.

    is_mask: whether the map is a mask in [0, 1] itself, to which `threshold` applies as it is.
    Other maps are min-max normalised first. The names that end in `_less_others` are the score of
    a map on its own image, less the mean score of the method's maps of all other images on the same
    ground truth: what a map knows about this image and not about such images.
    """
    rows = attributed.rows
    if not len(rows):
        return {}
    maps = list(attributed.maps)
    values = _where_it_lies(of, maps, rows, is_mask=is_mask)
    values |= {"complexity": complexity(maps), "sparseness": sparseness(maps)}
    if of.probability is not None:
        values["faithfulness"] = _each(of, attributed, "faithfulness", rows, _faithfulness)
        if of.settings.thorough:
            values |= _removal(of, attributed)
    columns = {name: _column(of, rows, column) for name, column in values.items()}
    if of.probability is not None and of.settings.thorough:
        few = np.intersect1d(rows, subset(len(of.images), of.settings.subset))
        columns["road"] = _column(of, few, _each(of, attributed, "road", few, _road))
    return columns


def _column(of: Compared, rows: NDArray[np.intp], values: PerImage) -> PerImage:
    column = np.full(len(of.images), np.nan)
    column[rows] = values
    return column


def _where_it_lies(
    of: Compared, maps: Sequence[NDArray[np.float32]], rows: NDArray[np.intp], *, is_mask: bool
) -> Columns:
    """The metrics that need ground truth, of the images that have a map: (n,) each."""
    if of.truth is None:
        return {}
    truth = list(of.truth[rows])
    values: Columns = {}
    for name, score in (("relevance_mass", relevance_mass), ("relevance_rank", relevance_rank)):
        each = score(maps, truth)  # (maps, images)
        same, count = np.diag(each), len(each)
        values[name] = same
        if count > 1:
            values[f"{name}_less_others"] = same - (each.sum(axis=0) - same) / (count - 1)
    values["pointing_game"] = pointing_game(maps, truth)
    segments = [(m if is_mask else min_max(m)) >= of.threshold for m in maps]
    values["iou"] = overlap(segments, truth)
    return values


def mean_curves(of: Compared, attributed: Attributed) -> dict[str, NDArray[np.float64]]:
    """The mean deletion and insertion curve of one method for each fill, (steps + 1,) each."""
    curves: dict[str, list[NDArray[Any]]] = {}
    for row in attributed.rows.tolist():
        for name, curve in _curves(of, attributed, row).items():
            curves.setdefault(name, []).append(curve)
    return {name: np.mean(each, axis=0) for name, each in curves.items()}


def _removal(of: Compared, attributed: Attributed) -> Columns:
    each = [_curves(of, attributed, row) for row in attributed.rows.tolist()]
    return {
        name: np.array([removal.area_under(curves[name]) for curves in each]) for name in each[0]
    }


def _curves(of: Compared, attributed: Attributed, row: int) -> Arrays:
    steps = of.settings.removal_steps
    key = (*_key(of, attributed, "removal", row), str(steps))
    kept = of.store.load(*key) if of.store else None
    if kept is None:
        kept = {}
        for fill in removal.FILLS:
            both = removal.curves(
                attributed.by_row[row],
                of.images[row],
                of.response(row),
                fill,
                of.device,
                steps=steps,
            )
            kept |= {f"deletion_{fill}": both.deletion, f"insertion_{fill}": both.insertion}
        if of.store:
            of.store.save(kept, *key)
    return kept


def _faithfulness(of: Compared, attributed: Attributed, rows: Sequence[int]) -> PerImage:
    assert of.probability is not None
    return faithfulness(
        [attributed.by_row[row] for row in rows],
        of.images[rows],
        of.probability,
        index=None if of.index is None else of.index[rows],
        device=of.device,
    )


def _road(of: Compared, attributed: Attributed, rows: Sequence[int]) -> PerImage:
    return np.array(
        [
            removal.road(attributed.by_row[row], of.images[row], of.response(row), of.device)
            for row in rows
        ]
    )


def _each(
    of: Compared,
    attributed: Attributed,
    kind: str,
    rows: NDArray[np.intp],
    score: Callable[[Compared, Attributed, Sequence[int]], PerImage],
) -> PerImage:
    """A score of each row's map (n,); what the store lacks is computed, `CHUNK` rows at once."""
    column = np.full(len(of.images), np.nan)
    lacking = []
    for row in rows.tolist():
        kept = of.store.load(*_key(of, attributed, kind, row)) if of.store else None
        if kept is None:
            lacking.append(row)
        else:
            column[row] = kept["score"]
    for start in range(0, len(lacking), CHUNK):
        chunk = lacking[start : start + CHUNK]
        column[chunk] = score(of, attributed, chunk)
        for row in chunk:
            if of.store:
                of.store.save({"score": column[row]}, *_key(of, attributed, kind, row))
    return column[rows]


def _key(of: Compared, attributed: Attributed, kind: str, row: int) -> tuple[str, ...]:
    index = "" if of.index is None else str(of.index[row])
    code = of.store.code.scores if of.store else ""
    return kind, code, index, digest(attributed.by_row[row]), digest(of.images[row])


def methods_table(columns: Mapping[str, Columns], patients: Patients) -> dict[str, MethodScores]:
    """The figures of each method, by key. A figure that is defined for no image is None.

    If the explanation module is among the methods, each other method is compared with it, paired
    by image.
    """
    return {
        method: MethodScores(
            scores=Scores(**{name: mean(column, patients) for name, column in values.items()}),
            **(
                _against(columns[NEMT], values, patients)
                if NEMT in columns and method != NEMT
                else {}
            ),
        )
        for method, values in columns.items()
    }


def _against(ours: Columns, theirs: Columns, patients: Patients) -> dict[str, Scores]:
    """The explanation module less, and over, another method."""
    both = [name for name in ours if name in theirs]
    over = [name for name in ("relevance_mass", "relevance_rank") if name in both]
    return {
        "nemt_less": Scores(**{name: mean(ours[name] - theirs[name], patients) for name in both}),
        "nemt_over": Scores(**{name: ratio(ours[name], theirs[name], patients) for name in over}),
    }
