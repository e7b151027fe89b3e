"""Does a map depend on the model? Randomised weights, and a shift of the input without effect.

Randomisation: J. Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018. The target model's
layers get random weights, from the output down one group after the other (cascading), or one group
alone (independent). A map that stays as it was explains the image, not the model. Input
invariance: P.-J. Kindermans et al., The (Un)reliability of Saliency Methods, 2017. A constant is
added to the image and taken away by the model's first step: same answer, so the same map.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..progress import Progress
from ..statistics import average, figure
from .methods import NEMT, Method

GROUPS = 8
"""Groups of layers that are randomised one after the other."""
SURVIVES = 0.5
"""Rank correlation of a map with that of the wholly randomised model from which it survives."""
SHIFT = 0.2
"""Added to every pixel of an image in [0, 1]."""
SEED = 0

_FAILURES = (RuntimeError, ValueError)


def similarity(before: Maps, after: Maps) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps, (N,); 0 where either is constant."""
    found = np.zeros(len(before))
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.max() > a.min() and b.max() > b.min():
            found[i] = spearmanr(a.ravel(), b.ravel()).statistic
    return found


def layer_groups(target_model: torch.nn.Module) -> list[list[str]]:
    """Names of the layers that have weights, from the input to the output, in up to GROUPS."""
    names = [
        name
        for name, module in target_model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    return [part.tolist() for part in np.array_split(np.array(names), GROUPS) if len(part)]


def randomised(network: ExplainedNetwork, layers: Sequence[str]) -> ExplainedNetwork:
    """A copy whose target model's `layers` are as timm initialises them, and whose mask is the
    same function of the features. Its running averages start anew as well.
    """
    copy = deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        fresh: Any = timm.create_model(
            network.architecture.backbone,
            pretrained=False,
            num_classes=len(network.architecture.outputs) or network.architecture.embedding,
        )
        head = fresh.get_classifier()
        if isinstance(head, torch.nn.Linear):  # timm's own may be all but 0
            torch.nn.init.kaiming_normal_(head.weight, nonlinearity="linear")
    for name in layers:
        state = fresh.get_submodule(name).state_dict()
        copy.target_model.get_submodule(name).load_state_dict(state)
    return copy.eval()


def randomisation(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    patients: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """How like a method's maps are to those of a randomised target model, JSON-able.

    For each method `cascading` and `independent`: the mean similarity for each group of layers,
    from the output to the input; `fully_randomised`, the figure for the whole model with its
    interval; `survives`, whether that is `SURVIVES` or more. The explanation module also has
    `area`: its mean mask on the trained model and, for each group, on the randomised ones.
    """
    groups = layer_groups(network.target_model)[::-1]
    progress.stage("randomised models", (2 * len(groups) + 1) * len(methods))
    before = {}
    for key, method in methods.items():
        before[key] = method.maps(network, images)
        progress.step(method.name)
    found: dict[str, Any] = {
        key: {"cascading": [], "independent": [], "name": method.name}
        for key, method in methods.items()
    }
    for kind, changed in _versions(groups):
        other = randomised(network, changed)
        for key, method in methods.items():
            failures = () if key == NEMT else _FAILURES  # ours that fails is a fault, not a finding
            alike, after = _alike(other, method, images, before[key], failures)
            found[key][kind].append(None if alike is None else round(float(alike.mean()), 4))
            progress.step(method.name)
            if key == NEMT and after is not None:
                area = found[key].setdefault("area", {"trained": _area(before[key])})
                area.setdefault(kind, []).append(_area(after))
            if kind == "cascading" and len(found[key][kind]) == len(groups):
                found[key] |= _verdict(alike, patients)
    found["layers"] = [f"{group[0]} to {group[-1]}" for group in groups]
    return found


def _versions(groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, list[str]]]:
    for i in range(len(groups)):
        yield "cascading", [name for group in groups[: i + 1] for name in group]
    for group in groups:
        yield "independent", list(group)


def _alike(
    network: ExplainedNetwork,
    method: Method,
    images: Images,
    before: Maps,
    failures: tuple[type[Exception], ...] = _FAILURES,
) -> tuple[NDArray[np.float64] | None, Maps | None]:
    """The similarities and the maps, or nothing where the method fails on a random network."""
    try:
        after = np.nan_to_num(method.maps(network, images))
    except failures:
        return None, None
    return similarity(before, after), after


def _verdict(alike: NDArray[np.float64] | None, patients: Sequence[str]) -> dict[str, Any]:
    if alike is None:
        return {"fully_randomised": None, "survives": False}
    whole = figure(average(alike), patients)
    return {"fully_randomised": whole, "survives": whole["mean"] >= SURVIVES}


def _area(masks: Maps) -> float:
    return round(float(masks.mean()), 4)


def input_invariance(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    patients: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """Similarity of each method's maps with and without the shift, with its interval.

    Raises `RuntimeError` where the shifted model does not answer as before.
    """
    other = deepcopy(network)
    other.get_buffer("pixel_mean").add_(SHIFT)
    shifted = images + np.float32(SHIFT)
    device = next(network.parameters()).device
    with torch.inference_mode():
        first, second = (
            net.logits(torch.from_numpy(x[:1]).to(device))
            for net, x in ((network, images), (other, shifted))
        )
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        raise RuntimeError("the shifted model answers otherwise")
    progress.stage("input invariance", len(methods))
    found = {}
    for key, method in methods.items():
        alike, _ = _alike(other, method, shifted, method.maps(network, images))
        if alike is not None:
            found[key] = figure(average(alike), patients)
        progress.step(method.name)
    return found
