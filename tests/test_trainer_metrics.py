"""Metrics with known answers, and against scikit-learn and Quantus."""

import warnings

import numpy as np
import pytest

from trainer.evaluate import MODULE, localisation
from trainer.metrics import (
    area_under_curve,
    bootstrap,
    min_max,
    relevance_mass,
    relevance_rank,
)
from trainer.thresholds import OVERLAP, move, youden


def region(rows: slice, columns: slice, side: int = 20) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[rows, columns] = True
    return mask


BOX = region(slice(4, 12), slice(6, 10))  # 8 %


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


def test_perfect_opposite_and_constant_maps() -> None:
    perfect = BOX.astype(np.float32)
    for score, constant in ((relevance_mass, BOX.mean()), (relevance_rank, BOX.mean())):
        found = score([perfect, 1 - perfect, np.full(BOX.shape, 0.3)], [BOX])[:, 0]
        assert found == pytest.approx([1.0, 0.0, constant])


def test_mass_of_a_half_right_map() -> None:
    shifted = np.roll(BOX, 2, axis=1).astype(np.float32)  # half of its columns overlap
    assert relevance_mass([shifted], [BOX])[0, 0] == pytest.approx(0.5)


def test_min_max_is_per_map_and_ignores_scale() -> None:
    attribution = np.random.default_rng(0).normal(size=(20, 20))
    assert min_max(attribution).min() == 0
    assert min_max(attribution).max() == 1
    assert relevance_mass([attribution], [BOX]) == pytest.approx(
        relevance_mass([7 * attribution - 3], [BOX])
    )


def test_mass_and_rank_are_quantus() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

        random = np.random.default_rng(1)
        maps = random.random((5, 1, 20, 20))
        boxes = np.stack([region(slice(i, i + 6), slice(2, 9 + i))[None] for i in range(5)]).astype(
            float
        )
        data = {
            "model": None,
            "x_batch": maps,
            "y_batch": np.zeros(5, int),
            "a_batch": np.stack([min_max(m) for m in maps]),
            "s_batch": boxes,
        }
        options = {"normalise": False, "abs": False, "disable_warnings": True}
        mass = quantus.RelevanceMassAccuracy(**options)(**data)
        rank = quantus.RelevanceRankAccuracy(**options)(**data)
    ours = [list(maps[:, 0]), list(boxes[:, 0].astype(bool))]
    assert np.diag(relevance_mass(*ours)) == pytest.approx(mass)
    assert np.diag(relevance_rank(*ours)) == pytest.approx(rank)


def test_bootstrap_draws_whole_patients() -> None:
    values = np.array([0.0] * 10 + [1.0] * 10)
    few = bootstrap(lambda rows: float(values[rows].mean()), ["a"] * 10 + ["b"] * 10)
    many = bootstrap(lambda rows: float(values[rows].mean()), [str(i) for i in range(20)])
    assert few == (0.0, 1.0)
    assert 0.2 < many[0] < 0.4
    assert 0.6 < many[1] < 0.8
    assert many == bootstrap(lambda rows: float(values[rows].mean()), [str(i) for i in range(20)])


def test_a_map_that_ignores_the_image_gains_nothing_over_others() -> None:
    boxes = np.stack([np.roll(BOX, 3 * i, axis=0) for i in range(4)])
    maps = {
        MODULE: boxes.astype(np.float32),
        "mean": np.broadcast_to(boxes.mean(axis=0, dtype=np.float32), boxes.shape),
    }
    table = localisation(maps, boxes, ["a", "b", "c", "d"])
    assert table[MODULE]["mass"]["value"] == 1
    assert table[MODULE]["mass_less_others"]["value"] > 0.5
    assert table["mean"]["mass"]["value"] > BOX.mean()
    assert table["mean"]["mass_less_others"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_moved_segment_keeps_its_area_and_lies_elsewhere() -> None:
    generator = np.random.default_rng(0)
    segment = np.zeros((96, 96), np.bool_)
    segment[20:60, 10:50] = True
    for _ in range(20):
        moved = move(segment, generator)
        assert moved.sum() == segment.sum()
        assert (moved & segment).sum() <= OVERLAP * segment.sum()
    most = np.ones((96, 96), np.bool_)
    most[:10] = False
    assert move(most, generator).sum() == most.sum()  # no such place: the best there is


def test_of_equally_good_thresholds_the_lowest() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1], np.float32)
    assert youden(scores, labels) == pytest.approx(0.5)
    many = np.concatenate([np.linspace(0.6, 1, 100), np.linspace(0, 0.5, 100), [0.55]])
    truth = np.concatenate([np.ones(100), np.zeros(101)])
    strict = youden(many.astype(np.float32), truth.astype(np.float32))
    assert strict < 0.53  # a few negatives above it cost less than TOLERANCE
