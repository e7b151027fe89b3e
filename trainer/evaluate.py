"""How good a bundle is, on test images that nothing was trained on or chosen by.

The bundle is read back from its folder and asked through `Explainer`, as it is served.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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

from .baselines import METHODS, Images, Maps, Method, for_representations, mean_of_boxes
from .cache import Examples, load_examples
from .comparison import Regions, average, compare, figure, seconds
from .datasets import Case, Dataset, read_radiograph, read_truth
from .explanation import soft_masks
from .metrics import Probability, area_under_curve
from .progress import Progress

Device = Literal["cpu", "cuda"]


def evaluate(
    bundle: Bundle, dataset: Dataset, cache: Path, *, device: Device, progress: Progress
) -> dict[str, Any]:
    """All metrics of a bundle on the test split of `dataset`, JSON-able.

    What depends on a target (AUC, decisions, verdicts) is absent where the bundle has none. The
    training split gives its ground truth to one baseline, their mean, and nothing else. Raises
    `DataError` where the test split is empty.
    """
    test = [case for case in dataset.cases if case.split == "test"]
    if not test:
        raise DataError("there is no test split to evaluate on")
    network = bundle.network(device)
    progress.stage("reading, test", len(test))
    examples = load_examples(
        test, bundle.preprocessing, cache=cache, done=progress.step, skip_bad=True
    )
    answer, masks = soft_masks(network, examples.images)
    metrics: dict[str, Any] = {"mask_area": _areas(examples, masks)}
    rows, regions = ground_truth(examples)
    if bundle.architecture.explains == "target":
        metrics["auc"] = _auc(examples, answer)
        metrics["decisions"] = _decisions(examples, answer, bundle.manifest.decision_threshold)
        metrics |= _drawn(bundle, examples, rows, device, progress)
    if len(rows):
        maps, methods, timings = attributions(
            network,
            examples.take(rows),
            [examples.patients[i] for i in rows],
            _training_regions(dataset, bundle, cache, progress),
            device=device,
            progress=progress,
        )
        probability, index = _explained(network, examples.take(rows), device)
        metrics["localisation"] = compare(
            maps,
            regions,
            examples.take(rows),
            probability,
            [examples.patients[i] for i in rows],
            index=index,
            device=device,
            done=progress.step,
        )
        for key, taken in timings.items():
            if key in metrics["localisation"]:
                metrics["localisation"][key]["seconds"] = taken
        metrics["classifier_seconds"] = timings["target_model"]
        metrics["methods"] = methods
        metrics["box_share"] = round(float(regions.mean()), 4)
    return metrics


def attributions(
    network: ExplainedNetwork,
    images: Images,
    patients: Sequence[str],
    training_regions: Sequence[Regions],
    *,
    device: Device,
    progress: Progress,
) -> tuple[dict[str, Maps], dict[str, dict[str, str]], dict[str, dict[str, float]]]:
    """Every method's maps of the same images (N, C, S, S), its description, and its seconds an
    image, timed in the same run and way as the target model's own forward pass, "target_model".
    """
    methods: dict[str, Method] = dict(METHODS)
    if network.explains_representation:
        methods = for_representations(device)
    if training_regions:
        methods["mean_of_boxes"] = mean_of_boxes(training_regions)

    @torch.inference_mode()
    def target_model(chosen: Images) -> None:
        network.logits(torch.from_numpy(chosen).to(device))

    progress.stage("evaluation", 3 * len(methods))
    maps: dict[str, Maps] = {}
    timings = {"target_model": seconds(target_model, images, patients, device=device)}
    for key, method in methods.items():
        maps[key] = method.maps(network, images)
        progress.step(method.name)
    for key, method in methods.items():
        timings[key] = seconds(_timed(method, network), images, patients, device=device)
        progress.step(method.name)
    return maps, {key: method.describe() for key, method in methods.items()}, timings


@torch.inference_mode()
def _explained(
    network: ExplainedNetwork, images: Images, device: Device
) -> tuple[Probability | None, NDArray[np.intp] | None]:
    """What is asked when evidence is gone: of the same output as of the whole image."""
    if network.explains_representation:
        return None, None
    if network.architecture.explains == "target":
        return network.probability, None
    found = [
        network.explained_output(part.to(device)).cpu()
        for part in torch.split(torch.from_numpy(images), 32)
    ]
    return network.probabilities, torch.cat(found).numpy()


def _timed(method: Method, network: ExplainedNetwork) -> Callable[[Images], Maps]:
    return lambda images: method.maps(network, images)


def require_ground_truth(examples: Examples) -> None:
    """Raises `DataError` where ground truth does not fit its image: before a run, not after it."""
    ground_truth(examples)


def ground_truth(examples: Examples) -> tuple[NDArray[np.intp], Regions]:
    """Rows of the positives that have ground truth, and it: (n,), (n, S, S)."""
    found: Mapping[int, Regions] = {
        i: region
        for i, (case, geometry) in enumerate(zip(examples.cases, examples.geometries, strict=True))
        if case.label and (region := read_truth(case, geometry)) is not None
    }
    side = examples.store.shape[-1]
    regions = np.stack(list(found.values())) if found else np.zeros((0, side, side), np.bool_)
    return np.array(list(found), np.intp), regions


def _drawn(
    bundle: Bundle,
    examples: Examples,
    boxed: NDArray[np.intp],
    device: Device,
    progress: Progress,
) -> dict[str, Any]:
    """Which share of images gets a segment drawn, asked one by one as the service does."""
    explainer = Explainer(bundle, ExplanationSettings(device=device))
    progress.stage("as it is served", len(examples))
    verdicts = np.empty(len(examples), dtype=object)
    for i, case in enumerate(examples.cases):
        verdicts[i] = explainer.explain([read_radiograph(case)])[0].verdict
        progress.step()
    negative = np.flatnonzero(examples.labels < 0.5)
    found: dict[str, Any] = {"negatives_drawn": _share(verdicts, negative, examples)}
    if len(boxed):
        found["boxed_drawn"] = _share(verdicts, boxed, examples)
        found["boxed_verdicts"] = {v.value: int((verdicts[boxed] == v).sum()) for v in Verdict}
    return found


def _share(
    verdicts: NDArray[np.object_], rows: NDArray[np.intp], examples: Examples
) -> dict[str, float]:
    drawn = verdicts[rows] == Verdict.EXPLAINED
    return figure(average(drawn), [examples.patients[i] for i in rows])


def _auc(examples: Examples, probability: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    found = {}
    sources = sorted({case.source for case in examples.cases})
    for name, chosen in [("all", sources), *((source, [source]) for source in sources)]:
        rows = np.array([i for i, case in enumerate(examples.cases) if case.source in chosen])
        p, y = probability[rows], examples.labels[rows]
        found[name] = figure(
            lambda r, p=p, y=y: area_under_curve(p[r], y[r]),  # type: ignore[misc]
            [examples.patients[i] for i in rows],
        )
    return found


def _areas(examples: Examples, masks: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Mean of the soft mask, before any gating, on images with and without the target."""
    area = masks.mean(axis=(1, 2))
    found = {}
    for name, label in (("positives", 1), ("negatives", 0)):
        rows = np.flatnonzero(examples.labels == label)
        found[name] = figure(average(area[rows]), [examples.patients[i] for i in rows])
    return found


def _decisions(
    examples: Examples, probability: NDArray[np.float32], threshold: float
) -> dict[str, dict[str, float]]:
    positive = probability >= threshold
    found = {}
    for name, label, right in (("sensitivity", 1, positive), ("specificity", 0, ~positive)):
        rows = np.flatnonzero(examples.labels == label)
        found[name] = figure(average(right[rows]), [examples.patients[i] for i in rows])
    return found


def _training_regions(
    dataset: Dataset, bundle: Bundle, cache: Path, progress: Progress
) -> list[Regions]:
    cases: list[Case] = [
        case
        for case in dataset.cases
        if case.split != "test" and case.label and case.source in {"RSNA", "HAM10000"}
    ]
    if not cases:
        return []
    progress.stage("training ground truth", len(cases))
    examples = load_examples(
        cases, bundle.preprocessing, cache=cache, done=progress.step, skip_bad=True
    )
    return list(ground_truth(examples)[1])
