"""Figures of merit in plain numpy. The tests compare them with scikit-learn and Quantus."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64] | NDArray[np.float32]


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


def relevance_mass(attribution: Values, region: NDArray[np.bool_]) -> float:
    """Share of the min-max normalised map that lies in the region (Quantus RelevanceMassAccuracy)."""
    normalised = min_max(attribution)
    return float(normalised[region].sum() / normalised.sum())


def relevance_rank(attribution: Values, region: NDArray[np.bool_]) -> float:
    """Hits / k among the k highest pixels, k the region's size (Quantus RelevanceRankAccuracy).

    A constant map ranks nothing and scores the region's share of the image.
    """
    flat = np.asarray(attribution).ravel()
    if not flat.max() > flat.min():
        return float(region.mean())
    k = int(region.sum())
    highest = np.argsort(flat, kind="stable")[::-1][:k]
    return float(region.ravel()[highest].mean())


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
