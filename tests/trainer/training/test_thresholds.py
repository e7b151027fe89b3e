"""The thresholds of a bundle, chosen on a network whose answer is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nemt_dicom.errors import TrainingError
from tests.trainer.training_kit import small_recipe
from trainer.progress import Silent
from trainer.training.thresholds import (
    CANDIDATES,
    OVERLAP,
    choose_thresholds,
    move,
    youden,
)

SIDE, PATCH = 32, (slice(8, 16), slice(8, 16))


class Patch(torch.nn.Module):
    """p is high if a patch is bright; the mask is `height` there."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height = height
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def log_odds_of(self, images: Tensor) -> Tensor:
        return 12 * (images[:, 0, *PATCH].mean(dim=(-2, -1)) - 0.5)

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(len(images), 1, SIDE, SIDE)
        mask[:, 0, *PATCH] = self.height
        return torch.sigmoid(self.log_odds_of(images)), mask

    def probability(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.log_odds_of(images))


def examples() -> Any:
    """Eight images: in every second one the patch is bright."""
    labels = np.array([0, 1] * 4, np.float32)
    images = np.full((8, 1, SIDE, SIDE), 0.3, np.float32)
    images[:, 0, *PATCH] += 0.5 * labels[:, None, None] + 0.01 * np.arange(8)[:, None, None]
    inside = np.ones((8, 1, SIDE, SIDE), np.bool_)
    return SimpleNamespace(images=images, labels=labels, inside=inside)


def test_all_three_are_chosen_on_a_network_that_is_right() -> None:
    network: Any = Patch(0.75)
    chosen = choose_thresholds(network, examples(), small_recipe(), Silent())
    record = chosen.record
    assert record is not None
    assert record.sensitivity == record.specificity == 1.0
    assert chosen.mask_threshold == 0.7  # the highest that the mask reaches
    assert chosen.evidence_margin < 0.2  # elsewhere nothing counts
    assert record.drawn_share_positives == 1.0
    assert record.drawn_share_negatives == 0.0
    assert [*record.by_mask_threshold] == [str(c) for c in CANDIDATES if c < 0.75]


def test_without_a_segment_there_is_nothing_to_choose() -> None:
    network: Any = Patch(0.05)
    with pytest.raises(TrainingError, match="no validation image has a segment"):
        choose_thresholds(network, examples(), small_recipe(), Silent())


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
