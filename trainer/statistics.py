"""Figures with their 95 % intervals, by a bootstrap over patients."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from nemt_dicom.model.evaluation import Figure

Values = NDArray[np.float64] | NDArray[np.float32]
Rows = NDArray[np.intp]
Statistic = Callable[[Rows], float]
"""Row numbers -> a number; NaN if it is not defined for these rows."""

RESAMPLES = 2000
"""Bootstrap resamples of an interval (Efron, Tibshirani 1993 ask for 1000 or more)."""


@dataclass(frozen=True)
class Patients:
    """Whose images the rows of a figure are, and how its interval is made.

    names: the patient of each row.
    resamples: how many times all patients are drawn with replacement.
    """

    names: tuple[str, ...]
    resamples: int = RESAMPLES

    def __len__(self) -> int:
        """The number of rows, that is, of images."""
        return len(self.names)

    def take(self, rows: Iterable[Any]) -> "Patients":
        """The patients of these rows."""
        return replace(self, names=tuple(self.names[int(row)] for row in rows))


def area_under_curve(scores: Values, labels: Values) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    From ranks (Mann and Whitney's U). scores, labels: (N,), a label above 0.5 is positive. NaN if
    one of the labels does not occur.
    """
    positive, negative = scores[labels > 0.5], scores[labels < 0.5]
    if not len(positive) or not len(negative):
        return float("nan")
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    above = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))


def figure(statistic: Statistic, patients: Patients) -> Figure:
    """A statistic of all rows with its interval, rounded to 5 significant digits.

    patients: of the N rows, N at least 1.

    Raises pydantic's `ValidationError` (a `ValueError`) if the statistic is NaN for all rows.
    """
    low, high = bootstrap(statistic, patients)
    value = statistic(np.arange(len(patients)))
    return Figure(mean=_rounded(value), lo=_rounded(low), hi=_rounded(high), n=len(patients))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def constant(value: float) -> Figure:
    """A figure without spread: a single measurement."""
    return Figure(mean=_rounded(value), lo=_rounded(value), hi=_rounded(value), n=1)


def average(values: NDArray[Any]) -> Statistic:
    """The statistic of rows that is the mean of their values, for `figure`."""
    return lambda rows: float(values[rows].mean())


def mean(values: NDArray[Any], patients: Patients) -> Figure | None:
    """The mean of the values (N,) that are defined (not NaN), or None if none is."""
    defined = np.flatnonzero(np.isfinite(values))
    if not len(defined):
        return None
    return figure(average(values[defined]), patients.take(defined))


def ratio(numerator: Values, denominator: Values, patients: Patients) -> Figure | None:
    """The ratio of two means over the rows (N,) that have both values.

    None if no row has both, or if the mean of the denominators is 0.
    """
    both = np.flatnonzero(np.isfinite(numerator) & np.isfinite(denominator))
    a, b = numerator[both], denominator[both]
    if not len(both) or b.mean() == 0:
        return None
    return figure(lambda rows: quotient(a[rows].mean(), b[rows].mean()), patients.take(both))


def quotient(numerator: float, denominator: float) -> float:
    """Numerator over denominator; NaN, which says nothing, if the denominator is 0."""
    return float(numerator / denominator) if denominator else float("nan")


def auc(scores: Values, labels: Values, patients: Patients) -> Figure | None:
    """The area under the ROC curve of scores (N,); None if one of the labels does not occur."""
    if not (labels > 0.5).any() or not (labels < 0.5).any():
        return None
    return figure(lambda rows: area_under_curve(scores[rows], labels[rows]), patients)


def bootstrap(statistic: Statistic, patients: Patients) -> tuple[float, float]:
    """95 % interval of a statistic, by drawing whole patients with replacement.

    A resample for which the statistic is not defined (NaN) is left out.
    """
    drawn = _resamples(patients.names, patients.resamples)
    low, high = np.nanpercentile([statistic(rows) for rows in drawn], (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(patients: tuple[str, ...], count: int) -> list[Rows]:
    """Row numbers of each resample; the figures of one table share them."""
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    rows = [np.flatnonzero(owner == i) for i in range(owner.max() + 1)]
    generator = np.random.default_rng(0)
    return [
        np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        for _ in range(count)
    ]
