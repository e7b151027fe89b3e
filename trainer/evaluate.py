"""How good a bundle is, on test images that nothing was trained on or chosen by.

The bundle is read back from its folder and asked through `Explainer`, as it is served.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.bundle import Bundle
from nemt_dicom.config import ExplanationSettings
from nemt_dicom.errors import DataError
from nemt_dicom.explainer import Explainer
from nemt_dicom.explanation import Verdict

from .baselines import grad_cam_plus_plus, mean_of_boxes, random_maps
from .cache import Examples, default_cache, load_examples
from .datasets import Case, read_radiograph, read_truth
from .explanation import soft_masks
from .metrics import area_under_curve, bootstrap, relevance_mass, relevance_rank
from .progress import Progress

MODULE = "explanation module"
Regions = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, its 95 % bootstrap interval over patients, and the images it is of."""

    value: float
    low: float
    high: float
    images: int


def figure(
    statistic: Callable[[NDArray[np.intp]], float], patients: Sequence[str]
) -> dict[str, float]:
    """A statistic of rows with its interval, rounded as it is kept in the manifest."""
    low, high = bootstrap(statistic, patients)
    value = statistic(np.arange(len(patients)))
    found = Figure(value=value, low=low, high=high, images=len(patients))
    return {k: v if k == "images" else round(v, 4) for k, v in asdict(found).items()}


def evaluate(
    bundle: Bundle,
    cases: Sequence[Case],
    *,
    device: Literal["cpu", "cuda"],
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """All metrics of a bundle on the test split of `cases`, JSON-able.

    The training split gives its boxes to one baseline, their mean, and nothing else. Raises
    `DataError` where the test split is empty.
    """
    test = [case for case in cases if case.split == "test"]
    if not test:
        raise DataError("there is no test split to evaluate on")
    explainer = Explainer(bundle, ExplanationSettings(device=device))
    progress.stage("evaluation", 2 * len(test) + 1)
    examples = load_examples(test, bundle.preprocessing, cache=default_cache(), done=progress.step)
    probability, masks = soft_masks(explainer.network, examples.images)
    verdicts = np.empty(len(test), dtype=object)
    for i, case in enumerate(test):
        verdicts[i] = explainer.explain([read_radiograph(case)])[0].verdict
        progress.step()
    metrics: dict[str, Any] = {
        "auc": _auc(examples, probability),
        "mask_area": _areas(examples, masks),
        "decisions": _decisions(examples, probability, bundle.manifest.decision_threshold),
    }
    boxes = [read_truth(c, g) for c, g in zip(test, examples.geometries, strict=True)]
    boxed = np.array([i for i, region in enumerate(boxes) if region is not None])
    if len(boxed):
        regions = np.stack([region for region in boxes if region is not None])
        patients = [test[i].patient for i in boxed]
        images = examples.images[boxed]
        maps = {
            MODULE: masks[boxed],
            "GradCAM++ (last block)": grad_cam_plus_plus(explainer.network, images),
            "mean of the training boxes": mean_of_boxes(_training_boxes(cases, bundle), len(boxed)),
            "random": random_maps(regions.shape, seed),
        }
        metrics["localisation"] = localisation(maps, regions, patients)
        metrics["box_share"] = round(float(regions.mean()), 4)
        drawn = verdicts[boxed] == Verdict.EXPLAINED
        metrics["boxed_drawn"] = figure(lambda rows: float(drawn[rows].mean()), patients)
        metrics["boxed_verdicts"] = {v.value: int((verdicts[boxed] == v).sum()) for v in Verdict}
    negative = np.flatnonzero(examples.labels < 0.5)
    wrongly = verdicts[negative] == Verdict.EXPLAINED
    metrics["negatives_drawn"] = figure(
        lambda rows: float(wrongly[rows].mean()), [test[i].patient for i in negative]
    )
    progress.step()
    return metrics


def localisation(
    maps: dict[str, NDArray[np.float32]], regions: Regions, patients: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Relevance mass and rank of each method's maps (N, S, S) in the regions (N, S, S).

    `*_less_others` is the score of a map on its own image less the mean score, on that image's
    boxes, of the maps of all other images: what a map knows of this image and not of chests.
    """
    table = {}
    for method, attributions in maps.items():
        row = {}
        for name, score in (("mass", relevance_mass), ("rank", relevance_rank)):
            scores = score(list(attributions), list(regions))  # (maps, images)
            own, count = np.diag(scores), len(scores)
            others = (scores.sum(axis=0) - own) / max(1, count - 1)
            row[name] = figure(_mean(own), patients)
            row[f"{name}_less_others"] = figure(_mean(own - others), patients)
        table[method] = row
    return table


def _mean(values: NDArray[np.float64]) -> Callable[[NDArray[np.intp]], float]:
    return lambda rows: float(values[rows].mean())


def _auc(examples: Examples, probability: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    found = {}
    sources = sorted({case.source for case in examples.cases})
    for name, chosen in [("all", sources), *((source, [source]) for source in sources)]:
        rows = np.array([i for i, case in enumerate(examples.cases) if case.source in chosen])
        p, y = probability[rows], examples.labels[rows]
        found[name] = figure(
            lambda r, p=p, y=y: area_under_curve(p[r], y[r]),  # type: ignore[misc]
            [examples.cases[i].patient for i in rows],
        )
    return found


def _areas(examples: Examples, masks: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Mean of the soft mask, before any gating, on images with and without the target."""
    area = masks.mean(axis=(1, 2))
    found = {}
    for name, label in (("positives", 1), ("negatives", 0)):
        rows = np.flatnonzero(examples.labels == label)
        found[name] = figure(_mean(area[rows]), [examples.cases[i].patient for i in rows])
    return found


def _decisions(
    examples: Examples, probability: NDArray[np.float32], threshold: float
) -> dict[str, dict[str, float]]:
    positive = probability >= threshold
    found = {}
    for name, label, right in (("sensitivity", 1, positive), ("specificity", 0, ~positive)):
        rows = np.flatnonzero(examples.labels == label)
        found[name] = figure(
            _mean(right[rows].astype(np.float64)), [examples.cases[i].patient for i in rows]
        )
    return found


def _training_boxes(cases: Sequence[Case], bundle: Bundle) -> list[Regions]:
    boxes = []
    for case in cases:
        if case.split != "test" and case.source == "RSNA" and case.label:
            geometry = bundle.preprocessing.geometry(read_radiograph(case))
            region = read_truth(case, geometry)
            if region is not None:
                boxes.append(region)
    return boxes
