"""The AUC against scikit-learn, and intervals by a bootstrap over patients."""

import numpy as np
import pytest

from nemt_dicom.model.evaluation import Figure
from trainer.statistics import Patients, area_under_curve, auc, bootstrap, figure, mean, ratio


def test_auc_known_answers() -> None:
    labels = np.array([0, 0, 1, 1.0])
    assert area_under_curve(np.array([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert area_under_curve(np.array([0.1, 0.3, 0.2, 0.4]), labels) == 0.75
    assert area_under_curve(np.ones(4), labels) == 0.5
    assert np.isnan(area_under_curve(np.ones(4), np.ones(4)))


def test_auc_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 20, 200) / 20, random.integers(0, 2, 200).astype(float)
    assert area_under_curve(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_bootstrap_draws_whole_patients() -> None:
    values = np.array([0.0] * 10 + [1.0] * 10)

    def interval(names: list[str], resamples: int = 2000) -> tuple[float, float]:
        return bootstrap(lambda rows: float(values[rows].mean()), Patients(tuple(names), resamples))

    few, many = interval(["a"] * 10 + ["b"] * 10), interval([str(i) for i in range(20)])
    assert few == (0.0, 1.0)
    assert 0.2 < many[0] < 0.4
    assert 0.6 < many[1] < 0.8
    assert many == interval([str(i) for i in range(20)])
    assert many != interval([str(i) for i in range(20)], 10)


ABC = Patients(("a", "b", "c"), 50)


def test_nothing_undefined_gets_into_a_figure() -> None:
    none, some = np.full(3, np.nan), np.array([1.0, np.nan, 3.0])
    assert mean(none, ABC) is None
    assert ratio(none, some, ABC) is None
    assert auc(some, np.ones(3), ABC) is None
    whole = mean(some, ABC)
    assert whole is not None
    assert (whole.mean, whole.n) == (2, 2)
    with pytest.raises(ValueError, match="finite number"):
        Figure(mean=float("nan"), lo=0, hi=1, n=1)


def test_a_ratio_to_nothing_is_not_defined() -> None:
    assert ratio(np.ones(3), np.zeros(3), ABC) is None
    over = ratio(np.array([0.0, 0.0, 2.0]), np.array([0.0, 0.0, 1.0]), ABC)
    assert over is not None  # resamples without the third patient say nothing
    assert (over.mean, over.lo, over.hi, over.n) == (2, 2, 2, 3)


def test_a_figure_of_rows_takes_their_patients() -> None:
    assert ABC.take(np.array([2, 0, 2])).names == ("c", "a", "c")
    assert ABC.take([0]).resamples == 50
    value = figure(lambda rows: 1 / 3, ABC)
    assert (value.mean, value.lo, value.hi, value.n) == (0.33333, 0.33333, 0.33333, 3)
