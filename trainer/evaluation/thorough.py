"""The further tests of a thorough evaluation, of the seeded subset: model, stability, silence."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images
from ..progress import Progress
from .maps import SLOW, seeded_subset
from .methods import NEMT, SHUFFLED, Method
from .model_dependence import input_invariance, randomisation
from .plan import MEAN_OF_BOXES, Evaluation
from .result_store import ResultStore, digest
from .robustness import answers, scrambled, stability
from .subgroups import auc_by_subgroup, by_subgroup, properties, sizes

QUICK = 0.5
"""Seconds an image up to which a method takes part in the tests that ask it for hundreds of maps,
where there is no GPU."""


def subgroups(found: Evaluation) -> dict[str, Any]:
    """Figures of the images compared, and the AUC of all, by view, sex, age and size."""
    examples = found.examples
    everyone = properties(examples.cases)
    groups = {name: values[found.rows] for name, values in everyone.items()}
    if found.compared.truth is not None:
        groups["ground truth"] = sizes(found.compared.truth)
    result = {"subgroups": by_subgroup(groups, found.columns, found.patients)}
    if found.answer.ndim == 1 and "auc" in found.summary:
        result["auc_by_subgroup"] = auc_by_subgroup(
            everyone, found.answer, examples.labels, examples.patients
        )
    return result


def further_tests(
    found: Evaluation,
    bundle: Bundle,
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    store: ResultStore,
    progress: Progress,
) -> dict[str, Any]:
    """Dependence on the model, stability and silence, of the seeded subset's images."""
    chosen = seeded_subset(len(found.rows))
    images = found.compared.images[chosen]
    truth = None if found.compared.truth is None else found.compared.truth[chosen]
    whose = [found.patients[i] for i in chosen]
    gpu = found.compared.device == "cuda"
    taken = {
        key: found.summary["methods"][key]["seconds"]["mean"]
        for key in methods
        if found.attributed[key].found
    }
    able = {key: methods[key] for key in taken if gpu or taken[key] <= SLOW or key == NEMT}
    able.pop(SHUFFLED, None)  # it is a test itself
    quick = {key: m for key, m in able.items() if gpu or taken[key] <= QUICK or key == NEMT}
    still = {key: m for key, m in quick.items() if key not in ("random", MEAN_OF_BOXES)}
    threshold = bundle.manifest.mask_threshold

    def kept(kind: str, methods: Mapping[str, Method], compute: Callable[[], Any]) -> Any:
        where = "" if truth is None else digest(truth)
        return remember(store, kind, methods, images, f"{threshold} {where} {whose}", compute)

    return {
        "randomisation": kept(
            "randomisation",
            quick,
            lambda: randomisation(network, quick, images, whose, progress),
        ),
        "input_invariance": kept(
            "invariance", able, lambda: input_invariance(network, able, images, whose, progress)
        ),
        "stability": kept(
            "stability",
            still,
            lambda: stability(network, still, images, truth, threshold, whose, progress),
        ),
        "silence": _silence(found, bundle, network, scrambled(images), whose),
    }


def remember(
    store: ResultStore,
    kind: str,
    methods: Mapping[str, Method],
    images: Images,
    more: str,
    compute: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """What was found of these methods together on these images before, or is found now."""
    code = store.code
    described = str([(key, sorted(method.describe().items())) for key, method in methods.items()])
    return store.remember(compute, kind, code.maps, code.tests, described, digest(images), more)


def _silence(
    found: Evaluation,
    bundle: Bundle,
    network: ExplainedNetwork,
    scrambled_images: Images,
    whose: list[str],
) -> dict[str, Any]:
    """What the bundle says of images with and without the target, and of what is no such image."""
    examples, result = found.examples, {}
    for name, label in (("with the target", 1), ("without the target", 0)):
        rows = np.flatnonzero(examples.labels == label)
        if len(rows):
            patients = [examples.patients[i] for i in rows]
            result[name] = answers(network, bundle.manifest, examples.take(rows), patients)
    result["tiles in random order"] = answers(network, bundle.manifest, scrambled_images, whose)
    return result
