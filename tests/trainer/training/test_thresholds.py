"""Thresholds on known scores, and where a moved segment lies."""

import numpy as np
import pytest

from trainer.training.thresholds import OVERLAP, move, youden


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
