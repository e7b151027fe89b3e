"""What is drawn at random depends on what it is for and on the example, and on nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.training.augment import add_noise, augment, occlude, smoothing_kernels
from trainer.training.draws import Draws, balanced, shuffled

KEY = (1, "classifier", 3)
CPU = torch.device("cpu")


def draws(rows: list[int], key: tuple[int | str, ...] = KEY) -> Draws:
    return Draws(key, np.array(rows))


def images(rows: list[int], side: int = 48) -> Tensor:
    """One smooth image an example, whatever batch it stands in."""
    found = [
        torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(100 + row)) for row in rows
    ]
    coarse = torch.cat(found)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)


def test_numbers_do_not_depend_on_the_other_rows() -> None:
    together = draws([5, 0, 7, 123_456]).uniform("augment", 6)
    assert together.shape == (4, 6)
    assert together.dtype == torch.float32
    for i, row in enumerate((5, 0, 7, 123_456)):
        assert torch.equal(draws([row]).uniform("augment", 6)[0], together[i])
    assert torch.equal(draws([7, 5]).uniform("augment", 6), together[[2, 0]])


def test_numbers_do_not_depend_on_what_else_is_drawn() -> None:
    one, other = draws([3, 4]), draws([3, 4])
    other.uniform("occlude", 50)
    assert torch.equal(one.uniform("augment", 6), other.uniform("augment", 6))
    assert torch.equal(one.uniform("augment", 6), other.uniform("augment", 6))
    torch.manual_seed(9)
    np.random.seed(9)
    assert torch.equal(one.uniform("augment", 6), other.uniform("augment", 6))


@pytest.mark.parametrize(
    "key",
    [(2, "classifier", 3), (1, "explanation module", 3), (1, "classifier", 4), (1, "classifier")],
)
def test_another_seed_stage_or_epoch_draws_others(key: tuple[int | str, ...]) -> None:
    assert not (draws([3], key).uniform("augment", 9) == draws([3]).uniform("augment", 9)).any()
    assert not np.array_equal(shuffled(key, 40), shuffled(KEY, 40))


def test_another_use_or_row_draws_others() -> None:
    found = draws([3, 4]).uniform("augment", 9)
    assert not (found[0] == found[1]).any()
    assert not (draws([3]).uniform("occlude", 9)[0] == found[0]).any()


def test_numbers_are_uniform() -> None:
    found = draws(list(range(4000))).uniform("augment", 5)
    assert found.min() >= 0
    assert found.max() < 1
    for column in found.T:
        counts = torch.histc(column, bins=10, min=0, max=1)
        assert counts.min() > 320  # 400 expected, standard deviation 19
        assert counts.max() < 480
    together = np.corrcoef(found.T.numpy())
    assert np.abs(together - np.eye(5)).max() < 0.08
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 0.08  # neighbouring rows


def test_an_order_holds_every_number_once() -> None:
    order = shuffled(KEY, 101)
    assert sorted(order) == list(range(101))
    assert np.array_equal(order, shuffled(KEY, 101))
    assert not np.array_equal(order, np.arange(101))


@pytest.mark.parametrize("chosen", [3, 12, 17])
def test_a_balanced_order_takes_the_fewer_ones_again(chosen: int) -> None:
    marked = np.zeros(25, bool)
    marked[np.random.default_rng(0).permutation(25)[:chosen]] = True
    order = balanced(KEY, marked)
    assert order.shape == (25,)
    assert np.array_equal(marked[order], np.arange(25) % 2 == 0)  # every second one
    times = np.bincount(order, minlength=25)
    for kind in (marked, ~marked):
        assert times[kind].max() - times[kind].min() <= 1
    assert np.array_equal(order, balanced(KEY, marked))
    assert not np.array_equal(order, balanced((*KEY[:2], 4), marked))


@pytest.mark.parametrize("chosen", [True, False])
def test_a_balanced_order_of_one_kind(chosen: bool) -> None:
    order = balanced(KEY, np.full(9, chosen))
    assert np.array_equal(np.sort(order), np.arange(9))


@pytest.mark.parametrize("mirror", [True, False])
def test_an_example_is_augmented_alike_in_any_batch(mirror: bool) -> None:
    rows = [4, 9, 2, 77]
    together = augment(images(rows), draws(rows), mirror=mirror)
    assert together.shape == (4, 1, 48, 48)
    assert together.min() >= 0
    assert together.max() <= 1
    for i, row in enumerate(rows):
        alone = augment(images([row]), draws([row]), mirror=mirror)
        assert torch.allclose(alone[0], together[i], atol=1e-6)
    later = augment(images(rows), draws(rows, (1, "classifier", 4)), mirror=mirror)
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(later, together, strict=True))


def test_an_example_is_occluded_alike_in_any_batch() -> None:
    rows = list(range(60))
    together = occlude(images(rows), draws(rows))
    for row in (0, 1, 2, 17, 59):
        alone = occlude(images([row]), draws([row]))
        assert torch.allclose(alone[0], together[row], atol=1e-6)
    same = (together == images(rows)).flatten(1).all(dim=1)
    assert 15 < int(same.sum()) < 45  # half of them, give or take
    changed = ((together - images(rows)).abs() > 0.02).float().mean(dim=(1, 2, 3))[~same]
    assert changed.max() < 0.55


def test_noise_has_every_size_up_to_the_largest_and_is_an_examples_own() -> None:
    rows = list(range(80))
    grey = torch.full((80, 1, 48, 48), 0.5)
    together = add_noise(grey, draws(rows), 0.04)
    assert torch.equal(add_noise(grey[:1], draws([17]), 0.04)[0], together[17])
    deviations = (together - grey).flatten(1).std(dim=1)
    assert deviations.max() < 0.042
    assert torch.histc(deviations, bins=4, min=0, max=0.04).min() > 8  # 20 each, give or take
    loudest = ((together - grey)[deviations.argmax()] / deviations.max()).flatten()
    assert abs(float(loudest.mean())) < 0.07
    assert 0.66 < float((loudest.abs() < 1).float().mean()) < 0.71  # as a normal distribution
    assert add_noise(grey, draws(rows), 0.0) is grey
    dark = add_noise(torch.zeros(80, 1, 48, 48), draws(rows), 0.04)
    assert dark.min() == 0


def test_colours_are_moved_together() -> None:
    rows = [1, 2, 3]
    grey = images(rows)
    colour = augment(grey.expand(-1, 3, -1, -1), draws(rows), mirror=True)
    assert colour.shape == (3, 3, 48, 48)
    alone = augment(grey, draws(rows), mirror=True)
    assert torch.allclose(colour, alone.expand(-1, 3, -1, -1), atol=1e-6)


def test_no_image_is_turned_upside_down() -> None:
    rows = list(range(200))
    top = torch.zeros(200, 1, 32, 32)
    top[:, :, :12] = 0.9
    found = augment(top, draws(rows), mirror=True)
    assert (found[:, :, :10].mean(dim=(1, 2, 3)) > found[:, :, -10:].mean(dim=(1, 2, 3))).all()


def test_half_are_mirrored_where_that_is_allowed() -> None:
    rows = list(range(200))
    left = torch.zeros(200, 1, 32, 32)
    left[:, :, :, :12] = 0.9

    def mirrored(allowed: bool) -> int:
        found = augment(left, draws(rows), mirror=allowed)
        right = found[..., -10:].mean(dim=(1, 2, 3)) > found[..., :10].mean(dim=(1, 2, 3))
        return int(right.sum())

    assert 70 < mirrored(True) < 130
    assert mirrored(False) == 0


@pytest.mark.parametrize("side", [2, 14, 21])
def test_kernels_are_positive_sum_to_one_and_are_each_examples_own(side: int) -> None:
    rows = [8, 3, 900]
    found = smoothing_kernels(draws(rows), side, CPU)
    assert found is not None
    assert found.shape == (3, side, side)
    assert found.min() > 0
    assert torch.allclose(found.sum(dim=(1, 2)), torch.ones(3), atol=1e-5)
    assert not torch.allclose(found[0], found[1])
    for i, row in enumerate(rows):
        alone = smoothing_kernels(draws([row]), side, CPU)
        assert alone is not None
        assert torch.equal(alone[0], found[i])


def test_no_smoothing_draws_nothing() -> None:
    assert smoothing_kernels(draws([1]), 1, CPU) is None
