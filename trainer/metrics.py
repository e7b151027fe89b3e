"""Figures of merit of a classifier and of attribution maps.

Mass, rank, pointing game and overlap are our own code: mass and rank are needed for every map on
every image at once. The tests compare them with Quantus. Complexity, sparseness and faithfulness
are computed by Quantus. All but the overlap see each map min-max normalised to [0, 1].
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Values = NDArray[np.float64] | NDArray[np.float32]
Region = NDArray[np.bool_]
PerImage = NDArray[np.float64]
"""A score of each image (N,); of `relevance_mass` and `relevance_rank` (maps, regions)."""
Probability = Callable[[Tensor], Tensor]
"""Images (B, C, S, S) in [0, 1] -> probability of the target (B,), or of all outputs (B, K)."""

FAITHFULNESS_STEPS = 56
"""Steps in which an image's pixels are removed: the paper's 224 * 4 pixels each, at 224 x 224."""
QUANTUS = {"normalise": False, "abs": False, "disable_warnings": True}
"""The maps come normalised, and in [0, 1] every value is its own absolute value."""


def min_max(attribution: Values) -> NDArray[np.float64]:
    """A map stretched to [0, 1]; a constant map becomes all ones, so that it scores chance."""
    low, high = float(attribution.min()), float(attribution.max())
    if not high > low:
        return np.ones(attribution.shape, np.float64)
    return (np.asarray(attribution, np.float64) - low) / (high - low)


def relevance_mass(attributions: Sequence[Values], regions: Sequence[Region]) -> PerImage:
    """Share of each min-max normalised map that lies in each region: (maps, regions).

    Quantus' RelevanceMassAccuracy.
    """
    maps = np.stack([min_max(a).ravel() for a in attributions])
    areas = np.stack([region.ravel() for region in regions]).astype(np.float64)
    return np.asarray(maps @ areas.T / maps.sum(axis=1, keepdims=True))


def relevance_rank(attributions: Sequence[Values], regions: Sequence[Region]) -> PerImage:
    """Hits / k among a map's k highest pixels, k the region's size: (maps, regions).

    regions: none is empty. Quantus' RelevanceRankAccuracy. A constant map ranks nothing and scores
    the region's share.
    """
    flat = [region.ravel() for region in regions]
    scores = np.empty((len(attributions), len(flat)))
    for i, attribution in enumerate(attributions):
        values = np.asarray(attribution).ravel()
        if not values.max() > values.min():
            scores[i] = [region.mean() for region in flat]
            continue
        highest = np.argsort(values, kind="stable")[::-1]
        scores[i] = [region[highest[: region.sum()]].mean() for region in flat]
    return scores


def pointing_game(attributions: Sequence[Values], regions: Sequence[Region]) -> PerImage:
    """1 if a highest pixel of a map lies in its region, otherwise 0: (maps,).

    Quantus' PointingGame. A constant map points nowhere and scores the region's share.
    """
    hits = np.empty(len(attributions))
    for i, (attribution, region) in enumerate(zip(attributions, regions, strict=True)):
        high = attribution.max()
        hits[i] = region[attribution == high].any() if high > attribution.min() else region.mean()
    return hits


def overlap(segments: Sequence[Region], regions: Sequence[Region]) -> PerImage:
    """Intersection over union of each segment with its region: (maps,). Two empty ones agree."""
    pairs = list(zip(segments, regions, strict=True))
    unions = [int((a | b).sum()) for a, b in pairs]
    return np.array(
        [int((a & b).sum()) / u if u else 1.0 for (a, b), u in zip(pairs, unions, strict=True)]
    )


def complexity(attributions: Sequence[Values]) -> PerImage:
    """Entropy of each map as shares of its sum: 0 for one pixel, log(S * S) for a constant map.

    Quantus' Complexity.
    """
    pixels = attributions[0].size
    return _by_quantus("Complexity", attributions, constant=float(np.log(pixels)))


def sparseness(attributions: Sequence[Values]) -> PerImage:
    """Gini index of each map: 0 for a constant map, near 1 for one pixel.

    Quantus' Sparseness.
    """
    return _by_quantus("Sparseness", attributions, constant=0.0)


def features_in_step(side: int) -> int:
    """Pixels that faithfulness removes at a time: 224 * 4 of 224 x 224, the same share elsewhere.

    Quantus wants a divisor of side * side, so the number of steps is the divisor nearest to 56.
    """
    pixels = side * side
    divisors = (steps for steps in range(1, pixels + 1) if pixels % steps == 0)
    return pixels // min(divisors, key=lambda steps: abs(steps - FAITHFULNESS_STEPS))


def faithfulness(
    attributions: Sequence[Values],
    images: NDArray[np.float32],
    probability: Probability,
    *,
    index: NDArray[np.intp] | None = None,
    device: str = "cpu",
    batch: int = 32,
) -> PerImage:
    """Correlation between what a step's pixels claim and how far p falls without them, an image.

    Quantus' FaithfulnessEstimate: pixels in order of their attribution, highest first, are made
    black a step at a time, each step from the whole image. "Black" is Quantus' word for the
    image's own minimum. Of colour images Quantus removes single values, not pixels: a step keeps
    its size and there are three times as many.

    attributions: maps (S, S). images: (N, C, S, S) in [0, 1]. index: (N,), which output is
    explained of each image, if `probability` gives all outputs. Returns (N,) in [-1, 1]; NaN if it
    is not defined: a constant map, or a p that no step changes.
    """
    return _by_quantus(
        "FaithfulnessEstimate",
        attributions,
        constant=float("nan"),
        images=images,
        index=index,
        settings={
            "features_in_step": features_in_step(images.shape[-1]),
            "perturb_baseline": "black",
        },
        call={"model": AsModule(probability).eval(), "device": device, "batch_size": batch},
    )


class AsModule(nn.Module):
    """Probabilities as the outputs (B, K) of a module, which is what Quantus and grad-cam take."""

    def __init__(self, probability: Probability) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            p = self.probability(images)
            return p if p.ndim > 1 else p[:, None]


def _by_quantus(
    metric: str,
    attributions: Sequence[Values],
    *,
    constant: float,
    images: NDArray[np.float32] | None = None,
    index: NDArray[np.intp] | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    call: Mapping[str, Any] = MappingProxyType({"model": None}),
) -> PerImage:
    """One score a map. Quantus refuses maps that are constant: their score is `constant`.

    Quantus works in place, here on the copy that `min_max` has made. It takes no softmax: of a
    single output that would be 1 whatever the network says.
    """
    scores = np.full(len(attributions), constant)
    varied = np.array([float(a.max()) > float(a.min()) for a in attributions])
    if not varied.any():
        return scores
    maps = np.stack([min_max(a) for a, v in zip(attributions, varied, strict=True) if v])[:, None]
    with _quantus() as quantus:
        scores[varied] = getattr(quantus, metric)(**QUANTUS, **settings)(
            x_batch=maps if images is None else images[varied],
            y_batch=np.zeros(len(maps), int) if index is None else index[varied],
            a_batch=maps,
            channel_first=True,
            softmax=False,
            **call,
        )
    return scores


@contextmanager
def _quantus() -> Iterator[Any]:
    """The library without what it warns of and prints; importing it takes seconds."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        import quantus  # noqa: PLC0415

        yield quantus
