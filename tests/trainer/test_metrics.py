"""Metrics with known answers, and against Quantus."""

import warnings

import numpy as np
import pytest
import torch

from tests.conftest import random_network
from tests.trainer.map_kit import BOX, SIDE, WEIGHTS, linear, pictures, region
from trainer.metrics import (
    QUANTUS,
    complexity,
    faithfulness,
    features_in_step,
    min_max,
    overlap,
    pointing_game,
    relevance_mass,
    relevance_rank,
    sparseness,
)


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


def test_complexity_and_sparseness_known_answers() -> None:
    uniform, one = np.full((20, 20), 0.3), np.zeros((20, 20))
    one[3, 4] = 1
    half = np.zeros((20, 20))
    half[:10] = 1
    maps = [uniform, one, half]
    assert complexity(maps) == pytest.approx([np.log(400), 0, np.log(200)], abs=1e-6)
    assert sparseness(maps) == pytest.approx([0, 1 - 1 / 400, 0.5], abs=1e-4)
    assert uniform[0, 0] == 0.3  # Quantus works in place, and not on what it is given here


def test_faithfulness_of_the_true_effect_is_one() -> None:
    images = pictures(3)
    effect = WEIGHTS.numpy() * images[:, 0]
    found = faithfulness([effect[0], 1 - effect[1], 7 * effect[2] - 3], images, linear)
    assert found == pytest.approx([1, -1, 1], abs=1e-3)


def test_faithfulness_ignores_what_it_cannot_know() -> None:
    images = pictures(4)
    images[2] = 0  # no step changes p
    maps = WEIGHTS.numpy() * images[:, 0]
    maps[1] = 0.3
    maps[2] = WEIGHTS.numpy()
    found = faithfulness(list(maps), images, linear)
    assert np.isnan(found).tolist() == [False, True, True, False]


@pytest.mark.parametrize("channels", [1, 3])
def test_complexity_sparseness_and_faithfulness_are_quantus(channels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = random_network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.network.logits(images))

    images = pictures(5, channels)
    maps = np.random.default_rng(1).normal(size=(5, SIDE, SIDE))
    model = Model().eval()

    def data() -> dict[str, object]:
        attributions = np.stack([min_max(m)[None] for m in maps])
        return {"x_batch": images, "y_batch": np.ones(5, int), "a_batch": attributions}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate = quantus.FaithfulnessEstimate(
            features_in_step=SIDE, perturb_baseline="black", **QUANTUS
        )
        expected = estimate(model=model, channel_first=True, softmax=False, **data())
        entropy = quantus.Complexity(**QUANTUS)(model=None, channel_first=True, **data())
        gini = quantus.Sparseness(**QUANTUS)(model=None, channel_first=True, **data())
    found = faithfulness(list(maps), images, model.network.probability, batch=64)
    assert np.ptp(found) > 0.01
    assert found == pytest.approx(expected, abs=1e-6)
    assert complexity(list(maps)) == pytest.approx(entropy, abs=1e-6)
    assert sparseness(list(maps)) == pytest.approx(gini, abs=1e-6)
    parts = faithfulness(list(maps), images, model.network.probability, batch=2)
    assert parts == pytest.approx(found, abs=1e-4)  # p differs by float32 rounding


def test_constant_maps_which_quantus_refuses() -> None:
    """One alone and among others: the same answer."""
    noise = np.random.default_rng(0).random((20, 20))
    for maps in ([np.zeros((20, 20))], [np.zeros((20, 20)), noise]):
        assert complexity(maps)[0] == pytest.approx(np.log(400))
        assert sparseness(maps)[0] == 0
        assert relevance_mass(maps, [BOX])[0, 0] == pytest.approx(BOX.mean())
    assert complexity([np.zeros((20, 20)), noise])[1] == complexity([noise])[0]


def test_quantus_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    faithfulness([pictures(1)[0, 0]], pictures(1), linear)
    assert capsys.readouterr() == ("", "")


def test_a_step_removes_the_same_share_at_every_size() -> None:
    assert features_in_step(224) == 224 * 4
    assert features_in_step(56) == 56
    for side in (64, 96, 128, 320, 384, 512):
        assert side**2 % features_in_step(side) == 0
        assert 48 <= side**2 / features_in_step(side) <= 64


def test_the_pointing_game_is_quantus() -> None:
    from quantus import PointingGame

    random = np.random.default_rng(0)
    maps = random.random((20, 20, 20)).astype(np.float32)
    regions = random.random((20, 20, 20)) > 0.5
    expected = PointingGame(disable_warnings=True)(
        model=None, x_batch=maps[:, None], y_batch=np.zeros(20, int), a_batch=maps[:, None],
        s_batch=regions[:, None], channel_first=True, softmax=False,
    )  # fmt: skip
    found = pointing_game(list(maps), list(regions))
    assert 0 < found.mean() < 1
    assert found == pytest.approx(np.array(expected, float))
    assert pointing_game([np.ones((20, 20))], [BOX])[0] == BOX.mean()


def test_overlap_known_answers() -> None:
    none = np.zeros_like(BOX)
    found = overlap([BOX, ~BOX, none, np.roll(BOX, 2, axis=1)], [BOX, BOX, none, BOX])
    assert found == pytest.approx([1, 0, 1, 1 / 3])
