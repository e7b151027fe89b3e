"""How good a bundle is, on images that nothing was trained on or chosen by.

The bundle is read back from its folder and asked through `Explainer`, as it is served. This is
where every figure in a report, in a manifest and in a model card comes from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Regions
from ..data.cases import Dataset, fingerprint, name_few
from ..data.examples import Examples, load_examples
from ..data.ground_truth import ground_truth
from ..inference import explained_probability, soft_masks
from ..progress import Progress
from ..provenance import code_state, device_name
from ..statistics import average, figure
from . import decisions
from .checks import checks
from .code_versions import code_versions
from .decisions import Device
from .maps import attribute
from .methods import NEMT, Method
from .plan import Evaluation, Plan, methods_of
from .result_store import ResultStore
from .scores import Evaluated, describe_metrics, mean_curves, methods_table, scores
from .thorough import further_tests, remember, subgroups
from .timing import TARGET_MODEL, time_methods


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    cache: Path,
    *,
    device: Device,
    progress: Progress,
    plan: Plan | None = None,
) -> Evaluation:
    """Measures a bundle on one split of `dataset`.

    Methods are compared on the images with the target and with ground truth; where the data have
    none, on all with the target, without the figures that need it. What depends on a target (AUC,
    decisions, verdicts) is absent where the bundle has none. The training and validation splits
    give their ground truth to one baseline, its mean, and nothing else. Raises `DataError` where
    the split has no image with the target.
    """
    plan = plan or Plan()
    network = bundle.network(device)
    examples = _read(bundle, dataset, cache, plan, progress)
    answer, masks = soft_masks(network, examples.images)
    rows, regions = ground_truth(examples)
    truth: Regions | None = regions
    summary: dict[str, Any] = {
        "evaluated": _what(dataset, examples, rows, plan, device),
        "mask_area": decisions.mask_areas(examples, masks),
    }
    if bundle.architecture.explains == "target":
        threshold = bundle.manifest.decision_threshold
        summary["auc"] = decisions.auc(examples, answer)
        summary["decisions"] = decisions.decisions(examples, answer, threshold)
        summary["drawn"] = decisions.drawn(bundle, examples, rows, device, progress)
    if not len(rows):
        rows, truth = np.flatnonzero(examples.labels > 0.5), None
    store = ResultStore(cache, bundle, device, code_versions())
    found = Evaluation(
        summary=summary,
        examples=examples,
        answer=answer,
        rows=rows,
        compared=_compared(bundle, network, examples.take(rows), truth, plan, store, device),
        attributed={},
        columns={},
    )
    methods = methods_of(plan, bundle, dataset, cache, device, progress)
    found = _compare(found, network, methods, store, progress)
    if plan.thorough:
        summary |= subgroups(found)
        summary |= further_tests(found, bundle, network, methods, store, progress)
    summary["checks"] = checks(summary)
    return found


def _read(
    bundle: Bundle, dataset: Dataset, cache: Path, plan: Plan, progress: Progress
) -> Examples:
    split = plan.split
    cases = [case for case in dataset.cases if case.split == split]
    if not any(case.label for case in cases):
        raise DataError(
            f"the {split} split has no image with {dataset.target!r}, of {len(cases)} images: "
            "there is nothing to explain"
        )
    progress.stage(f"reading, {split}", len(cases))
    return load_examples(
        cases, bundle.preprocessing, cache=cache, done=progress.step, skip_bad=plan.skip_bad
    )


def _left_out(examples: Examples) -> list[str]:
    few, count = name_few(examples.skipped, "; "), len(examples.skipped)
    return [f"{count} images could not be read and are left out: {few}"] if count else []


def _what(
    dataset: Dataset, examples: Examples, rows: NDArray[np.intp], plan: Plan, device: Device
) -> dict[str, Any]:
    """Which images were looked at, by which code, on what."""
    return {
        "split": plan.split,
        "images": len(examples),
        "positives": int(examples.labels.sum()),
        "with_ground_truth": len(rows),
        "unreadable": len(examples.skipped),
        "patients": len(set(examples.patients)),
        "sources": sorted({case.source for case in examples.cases}),
        "fingerprint": fingerprint(examples.cases),
        "notes": [*dataset.notes, *_left_out(examples)],
        "thorough": plan.thorough,
        "device": device_name(device, torch.get_num_threads()),
        "code": code_state(),
    }


def _compared(
    bundle: Bundle,
    network: ExplainedNetwork,
    images: Images,
    truth: Regions | None,
    plan: Plan,
    store: ResultStore,
    device: Device,
) -> Evaluated:
    probability, index = explained_probability(network, images)
    return Evaluated(
        images=images,
        truth=truth,
        probability=probability,
        index=index,
        threshold=bundle.manifest.mask_threshold,
        thorough=plan.thorough,
        device=device,
        store=store,
    )


def _compare(
    so_far: Evaluation,
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    store: ResultStore,
    progress: Progress,
) -> Evaluation:
    """Maps, scores and seconds of every method; adds `methods` to the summary."""
    compared, summary, whose = so_far.compared, so_far.summary, so_far.patients
    attributed = attribute(network, methods, compared.images, store, progress)
    working = {key: method for key, method in methods.items() if attributed[key].found}
    columns = {}
    progress.stage("scores", len(methods))
    for key, method in methods.items():
        columns[key] = scores(compared, attributed[key], gated=key == NEMT)
        progress.step(method.name)
    timings = remember(
        store,
        "time",
        working,
        compared.images,
        summary["evaluated"]["device"],
        lambda: time_methods(network, working, compared.images, whose, progress),
    )
    summary["classifier"] = timings[TARGET_MODEL]
    summary["methods"] = methods_table(columns, whose)
    for key, method in methods.items():
        summary["methods"][key] |= {
            **method.describe(),
            **timings.get(key, {}),
            "asked": len(attributed[key].found) + len(attributed[key].failed),
            "failed": len(attributed[key].failed),
            "failures": sorted(set(attributed[key].failed.values())),
        }
        if compared.thorough and compared.probability is not None:
            curves = mean_curves(compared, attributed[key])
            summary["methods"][key]["curves"] = {
                name: [round(float(p), 4) for p in curve] for name, curve in curves.items()
            }
    summary["metrics"] = describe_metrics(compared.images.shape[-1])
    if compared.truth is not None:
        summary["truth_share"] = figure(average(compared.truth.mean(axis=(1, 2))), whose)
    return Evaluation(**{**vars(so_far), "attributed": attributed, "columns": columns})


def for_manifest(summary: dict[str, Any]) -> dict[str, Any]:
    """What a bundle carries of an evaluation: all but the curves and the subgroups' rows."""
    methods = {
        key: {name: value for name, value in row.items() if name != "curves"}
        for key, row in summary["methods"].items()
    }
    kept = {k: v for k, v in summary.items() if k not in ("subgroups", "auc_by_subgroup")}
    return kept | {"methods": methods}
