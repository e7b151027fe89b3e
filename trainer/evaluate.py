"""How good a bundle is, on test images that nothing was trained on or chosen by.

The bundle is read back from its folder and asked through `Explainer`, as it is served.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.bundle import Bundle
from nemt_dicom.config import ExplanationSettings
from nemt_dicom.errors import DataError
from nemt_dicom.explainer import Explainer
from nemt_dicom.explanation import Verdict
from nemt_dicom.network import ExplainedNetwork

from .baselines import METHODS, Images, mean_of_boxes
from .comparison import Regions, average, compare, figure, seconds
from .datasets import Case, Examples, load_examples, read_boxes, read_radiograph
from .explanation import soft_masks
from .metrics import area_under_curve
from .progress import Progress


def evaluate(
    bundle: Bundle,
    cases: Sequence[Case],
    *,
    device: Literal["cpu", "cuda"],
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
    progress.stage("evaluation", 2 * len(test) + 2 * (len(METHODS) + 1))
    examples = load_examples(test, bundle.preprocessing, done=progress.step)
    probability, masks = soft_masks(explainer.network, examples.images)
    verdicts = np.empty(len(test), dtype=object)
    for i, case in enumerate(test):
        verdicts[i] = explainer.explain([read_radiograph(case.path)])[0].verdict
        progress.step()
    metrics: dict[str, Any] = {
        "auc": _auc(examples, probability),
        "mask_area": _areas(examples, masks),
        "decisions": _decisions(examples, probability, bundle.manifest.decision_threshold),
    }
    boxes = [read_boxes(c, g) for c, g in zip(test, examples.geometries, strict=True)]
    boxed = np.array([i for i, region in enumerate(boxes) if region is not None])
    if len(boxed):
        regions = np.stack([region for region in boxes if region is not None])
        patients = [test[i].patient for i in boxed]
        metrics |= localisation(
            explainer.network,
            examples.images[boxed],
            regions,
            patients,
            _training_boxes(cases, bundle),
            device=device,
            progress=progress,
        )
        metrics["box_share"] = round(float(regions.mean()), 4)
        drawn = verdicts[boxed] == Verdict.EXPLAINED
        metrics["boxed_drawn"] = figure(average(drawn), patients)
        metrics["boxed_verdicts"] = {v.value: int((verdicts[boxed] == v).sum()) for v in Verdict}
    negative = np.flatnonzero(examples.labels < 0.5)
    wrongly = verdicts[negative] == Verdict.EXPLAINED
    metrics["negatives_drawn"] = figure(average(wrongly), [test[i].patient for i in negative])
    return metrics


def localisation(
    network: ExplainedNetwork,
    images: Images,
    regions: Regions,
    patients: Sequence[str],
    training_boxes: Sequence[Regions],
    *,
    device: Literal["cpu", "cuda"],
    progress: Progress,
) -> dict[str, Any]:
    """Every method on the same images: `localisation`, `methods` and `classifier_seconds`.

    images: (N, C, S, S) in [0, 1] with regions (N, S, S). Each method is timed in the same run and
    in the same way as the classifier's own forward pass.
    """
    methods = dict(METHODS)
    if training_boxes:
        methods["mean_of_boxes"] = mean_of_boxes(training_boxes)

    @torch.inference_mode()
    def classify(chosen: Images) -> None:
        network.probability(torch.from_numpy(chosen).to(device))

    maps, time = {}, {}
    for key, method in methods.items():
        maps[key] = method.maps(network, images)
        time[key] = seconds(lambda x, m=method: m.maps(network, x), images, patients, device=device)  # type: ignore[misc]
        progress.step(f"maps, {method.name}")
    table = compare(
        maps, regions, images, network.probability, patients, device=device, done=progress.step
    )
    for key, row in table.items():
        row["seconds"] = time[key]
    return {
        "localisation": table,
        "methods": {key: method.describe() for key, method in methods.items()},
        "classifier_seconds": seconds(classify, images, patients, device=device),
    }


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
        found[name] = figure(average(area[rows]), [examples.cases[i].patient for i in rows])
    return found


def _decisions(
    examples: Examples, probability: NDArray[np.float32], threshold: float
) -> dict[str, dict[str, float]]:
    positive = probability >= threshold
    found = {}
    for name, label, right in (("sensitivity", 1, positive), ("specificity", 0, ~positive)):
        rows = np.flatnonzero(examples.labels == label)
        found[name] = figure(
            average(right[rows]),
            [examples.cases[i].patient for i in rows],
        )
    return found


def _training_boxes(cases: Sequence[Case], bundle: Bundle) -> list[Regions]:
    boxes = []
    for case in cases:
        if case.split != "test" and case.source == "RSNA" and case.label:
            geometry = bundle.preprocessing.geometry(read_radiograph(case.path))
            region = read_boxes(case, geometry)
            if region is not None:
                boxes.append(region)
    return boxes
