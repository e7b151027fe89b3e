"""Does a map depend on the model? Randomised weights, and a shift of the input without effect.

Randomisation: J. Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018. The target model's
layers get random weights: one group after the other from the output down (cascading), or one group
alone (independent). A map that stays as it was explains the image, not the model.

Input invariance: P.-J. Kindermans et al., The (Un)reliability of Saliency Methods, 2017. A constant
is added to the image and taken away by the model's first step. The answer is the same, so the map
should be.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from nemt_dicom.model.evaluation import Figure, Randomisation, RandomisedArea, RandomisedMethod
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..inference import device_of
from ..progress import Progress
from ..statistics import Patients, average, figure
from .methods import FAILURES, Method
from .settings import NEMT

Kind = Literal["cascading", "independent"]

SURVIVES = 0.5
"""Rank correlation with the map of the wholly randomised model from which on a map survives."""
SHIFT = 0.2
"""What is added to every pixel of an image in [0, 1]."""
SEED = 0


def similarity(before: Maps, after: Maps) -> NDArray[np.float64]:
    """Spearman's rank correlation of each pair of maps (N, S, S): (N,); 0 if either is constant."""
    correlations = np.zeros(len(before))
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.max() > a.min() and b.max() > b.min():
            correlations[i] = spearmanr(a.ravel(), b.ravel()).statistic
    return correlations


def layer_groups(target_model: torch.nn.Module, count: int) -> list[list[str]]:
    """Names of the layers that have weights, from the input to the output, in up to `count`."""
    names = [
        name
        for name, module in target_model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    return [part.tolist() for part in np.array_split(np.array(names), count) if len(part)]


def randomised(network: ExplainedNetwork, layers: Sequence[str]) -> ExplainedNetwork:
    """A copy whose target model has `layers`, with their averages, as timm initialises them.

    The explanation module stays the same function of the features.
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
        if isinstance(head, torch.nn.Linear):  # timm may initialise it near 0
            torch.nn.init.kaiming_normal_(head.weight, nonlinearity="linear")
    for name in layers:
        state = fresh.get_submodule(name).state_dict()
        copy.target_model.get_submodule(name).load_state_dict(state)
    return copy.eval()


@dataclass
class _Finding:
    """How like one method's maps are to its maps of the randomised models, while it is measured."""

    before: Maps
    alike: dict[Kind, list[float | None]] = field(
        default_factory=lambda: {"cascading": [], "independent": []}
    )
    areas: dict[Kind, list[float]] = field(
        default_factory=lambda: {"cascading": [], "independent": []}
    )
    whole: Figure | None = None

    def result(self, name: str, *, with_area: bool) -> RandomisedMethod:
        """The finding as a figure of the evaluation."""
        return RandomisedMethod(
            name=name,
            cascading=tuple(self.alike["cascading"]),
            independent=tuple(self.alike["independent"]),
            fully_randomised=self.whole,
            survives=self.whole is not None and self.whole.mean >= SURVIVES,
            area=RandomisedArea(
                trained=_area(self.before),
                cascading=tuple(self.areas["cascading"]),
                independent=tuple(self.areas["independent"]),
            )
            if with_area
            else None,
        )


def randomisation(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    patients: Patients,
    progress: Progress,
    *,
    groups: int,
) -> Randomisation:
    """How like each method's maps are to its maps of a randomised target model.

    images: (N, C, S, S). groups: of layers. If the explanation module fails on a randomised model,
    its error is raised; a failure of another method leaves its figure None.
    """
    layers = layer_groups(network.target_model, groups)[::-1]
    progress.stage("randomised models", (2 * len(layers) + 1) * len(methods))
    findings: dict[str, _Finding] = {}
    for key, method in methods.items():
        findings[key] = _Finding(method.maps(network, images))
        progress.step(method.name)
    for kind, changed in _versions(layers):
        other = randomised(network, changed)
        for key, method in methods.items():
            finding = findings[key]
            failures = () if key == NEMT else FAILURES  # a failure of ours is a fault
            alike, after = _alike(other, method, images, finding.before, failures)
            finding.alike[kind].append(None if alike is None else round(float(alike.mean()), 4))
            if after is not None:
                finding.areas[kind].append(_area(after))
            last = kind == "cascading" and len(finding.alike[kind]) == len(layers)
            if last and alike is not None:
                finding.whole = figure(average(alike), patients)
            progress.step(method.name)
    return Randomisation(
        layers=tuple(f"{group[0]} to {group[-1]}" for group in layers),
        methods={
            key: finding.result(methods[key].name, with_area=key == NEMT)
            for key, finding in findings.items()
        },
    )


def _versions(groups: Sequence[Sequence[str]]) -> Iterator[tuple[Kind, list[str]]]:
    for i in range(len(groups)):
        yield "cascading", [name for group in groups[: i + 1] for name in group]
    for group in groups:
        yield "independent", list(group)


def _alike(
    network: ExplainedNetwork,
    method: Method,
    images: Images,
    before: Maps,
    failures: tuple[type[Exception], ...] = FAILURES,
) -> tuple[NDArray[np.float64] | None, Maps | None]:
    """The similarities and the new maps, or None if the method fails on this network."""
    try:
        after = np.nan_to_num(method.maps(network, images))
    except failures:
        return None, None
    return similarity(before, after), after


def _area(masks: Maps) -> float:
    return round(float(masks.mean()), 4)


def input_invariance(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    patients: Patients,
    progress: Progress,
) -> dict[str, Figure]:
    """Similarity of each method's maps (N, S, S) with and without the shift, by method.

    A method that fails on the shifted model is left out. Raises `RuntimeError` if the shifted model
    does not answer as before.
    """
    other = deepcopy(network)
    other.get_buffer("pixel_mean").add_(SHIFT)
    shifted = images + np.float32(SHIFT)
    device = device_of(network)
    with torch.inference_mode():
        first, second = (
            net.logits(torch.from_numpy(x[:1]).to(device))
            for net, x in ((network, images), (other, shifted))
        )
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3):
        raise RuntimeError("the shifted model gives another answer")
    progress.stage("input invariance", len(methods))
    figures = {}
    for key, method in methods.items():
        alike, _ = _alike(other, method, shifted, method.maps(network, images))
        if alike is not None:
            figures[key] = figure(average(alike), patients)
        progress.step(method.name)
    return figures
