"""Random numbers that depend on seed, stage, epoch, use and example, and what is made of them."""

import numpy as np
import pytest
import torch

from trainer.augment import augment, occlude, smoothing_kernels
from trainer.draws import Draws, shuffled

KEY = (1, "classifier", 3)


def draws(*rows: int, key: tuple[int | str, ...] = KEY) -> Draws:
    return Draws(key, np.array(rows))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_an_example_draws_the_same_in_any_batch() -> None:
    alone = draws(7).uniform("augment", 5)
    among = draws(3, 7, 9).uniform("augment", 5)
    assert torch.equal(among[1], alone[0])


def test_uses_epochs_stages_seeds_and_examples_draw_apart() -> None:
    base = draws(7).uniform("augment", 100)
    others = [
        draws(7).uniform("occlude", 100),
        draws(8).uniform("augment", 100),
        draws(7, key=(1, "classifier", 4)).uniform("augment", 100),
        draws(7, key=(1, "explanation module", 3)).uniform("augment", 100),
        draws(7, key=(2, "classifier", 3)).uniform("augment", 100),
    ]
    for other in others:
        assert abs(float(np.corrcoef(base[0], other[0])[0, 1])) < 0.4
        assert not torch.equal(base, other)


def test_numbers_are_uniform() -> None:
    values = draws(*range(2000)).uniform("x", 10)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    first, second = (shuffled((1, "classifier", epoch), 50) for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) == list(shuffled((1, "classifier", 1), 50)) != list(second)


@pytest.mark.parametrize("change", [lambda x, d: augment(x, d, mirror=True), occlude])
def test_an_image_is_changed_by_its_own_draws_alone(change) -> None:
    x = images(3)
    together = change(x, draws(4, 5, 6))
    alone = change(x[1:2], draws(5))
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert not torch.allclose(together[1:2], x[1:2], atol=1e-2) or change is occlude


def test_no_image_is_turned_upside_down() -> None:
    bright_top = torch.zeros(64, 1, 32, 32)
    bright_top[:, :, :8] = 1
    found = augment(bright_top, draws(*range(64)), mirror=True)
    assert (found[:, 0, :8].mean((1, 2)) > found[:, 0, -8:].mean((1, 2)) + 0.3).all()


def test_half_of_the_images_are_occluded() -> None:
    x = images(200)
    changed = (occlude(x, draws(*range(200))) - x).abs().amax((1, 2, 3)) > 1e-3
    assert 0.4 < float(changed.float().mean()) < 0.6


def test_smoothing_kernels_are_positive_and_sum_to_one() -> None:
    kernels = smoothing_kernels(draws(1, 2, 3), 21, torch.device("cpu"))
    assert kernels is not None
    assert kernels.shape == (3, 21, 21)
    assert (kernels > 0).all()
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(3), atol=1e-5)
    assert not torch.equal(kernels[0], kernels[1])
    assert smoothing_kernels(draws(1), 1, torch.device("cpu")) is None
