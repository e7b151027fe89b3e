"""Figures of merit in plain numpy. The tests compare them with scikit-learn and Quantus."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64] | NDArray[np.float32]
Region = NDArray[np.bool_]
Scores = NDArray[np.float64]


def area_under_curve(scores: Values, labels: Values) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half."""
    positive, negative = scores[labels > 0.5], scores[labels < 0.5]
    if not len(positive) or not len(negative):
        return float("nan")
    above = (positive[:, None] > negative).mean()
    return float(above + 0.5 * (positive[:, None] == negative).mean())


def min_max(attribution: Values) -> NDArray[np.float64]:
    """A map stretched to [0, 1]; a constant map becomes all ones, so that it scores chance."""
    low, high = float(attribution.min()), float(attribution.max())
    if not high > low:
        return np.ones(attribution.shape, np.float64)
    return (np.asarray(attribution, np.float64) - low) / (high - low)


def relevance_mass(attributions: Sequence[Values], regions: Sequence[Region]) -> Scores:
    """Share of each min-max normalised map that lies in each region: (maps, regions).

    Quantus' RelevanceMassAccuracy.
    """
    maps = np.stack([min_max(a).ravel() for a in attributions])
    areas = np.stack([region.ravel() for region in regions]).astype(np.float64)
    return np.asarray(maps @ areas.T / maps.sum(axis=1, keepdims=True))


def relevance_rank(attributions: Sequence[Values], regions: Sequence[Region]) -> Scores:
    """Hits / k among a map's k highest pixels, k the region's size: (maps, regions).

    Quantus' RelevanceRankAccuracy. A constant map ranks nothing and scores the region's share.
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


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    patients: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float]:
    """95 % interval of a statistic of rows, by drawing whole patients with replacement.

    statistic: takes row numbers. A resample where it is not defined (NaN) is left out.
    """
    names = sorted(set(patients))
    rows = {name: np.flatnonzero(np.asarray(patients) == name) for name in names}
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = generator.integers(len(names), size=len(names))
        found.append(statistic(np.concatenate([rows[names[i]] for i in drawn])))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(low), float(high)
