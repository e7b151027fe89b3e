"""Figures with their 95 % intervals, by a bootstrap over patients."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Values = NDArray[np.float64] | NDArray[np.float32]
Statistic = Callable[[NDArray[np.intp]], float]
"""Row numbers -> a number; NaN if it is not defined for these rows."""

RESAMPLES = 2000


def area_under_curve(scores: Values, labels: Values) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half."""
    positive, negative = scores[labels > 0.5], scores[labels < 0.5]
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    above = ranks.sum() - len(positive) * (len(positive) + 1) / 2  # Mann and Whitney's U
    return float(above / (len(positive) * len(negative)))


def figure(statistic: Statistic, patients: Sequence[str]) -> dict[str, float]:
    """A statistic of rows with its interval, rounded to 5 digits.

    patients: the patient of each row. Keys: mean (the value, if it is no mean), lo, hi, n.
    """
    low, high = bootstrap(statistic, patients)
    numbers = {"mean": statistic(np.arange(len(patients))), "lo": low, "hi": high}
    return {name: float(f"{value:.5g}") for name, value in numbers.items()} | {"n": len(patients)}


def average(values: NDArray[Any]) -> Statistic:
    """The statistic of rows that is the mean of their values, for `figure`."""
    return lambda rows: float(values[rows].mean())


def mean(values: NDArray[Any], patients: Sequence[str]) -> dict[str, float] | None:
    """The mean of the values that are defined (not NaN), or None if none is."""
    defined = np.flatnonzero(np.isfinite(values))
    if not len(defined):
        return None
    return figure(average(values[defined]), [patients[i] for i in defined.tolist()])


def ratio(
    numerator: Values, denominator: Values, patients: Sequence[str]
) -> dict[str, float] | None:
    """The ratio of two means over the rows that have both values; None if no row has."""
    both = np.flatnonzero(np.isfinite(numerator) & np.isfinite(denominator))
    if not len(both):
        return None
    a, b = numerator[both], denominator[both]
    return figure(
        lambda rows: float(a[rows].mean() / max(b[rows].mean(), 1e-12)),
        [patients[i] for i in both.tolist()],
    )


def bootstrap(
    statistic: Statistic, patients: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of a statistic, by drawing whole patients with replacement.

    A resample for which the statistic is not defined (NaN) is left out.
    """
    values = [statistic(rows) for rows in _resamples(tuple(patients), seed, resamples)]
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(patients: tuple[str, ...], seed: int, count: int) -> list[NDArray[np.intp]]:
    """Row numbers of each resample; the figures of one table share them."""
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(owner == i) for i in range(owner.max() + 1)]
    generator = np.random.default_rng(seed)
    return [
        np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        for _ in range(count)
    ]
