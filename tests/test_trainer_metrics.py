"""Metrics with known answers, and against scikit-learn and Quantus."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_network

from trainer.baselines import METHODS
from trainer.comparison import compare, seconds
from trainer.metrics import (
    QUANTUS,
    area_under_curve,
    bootstrap,
    complexity,
    faithfulness,
    features_in_step,
    min_max,
    relevance_mass,
    relevance_rank,
    sparseness,
)
from trainer.report import differences_table, draw_comparison, localisation_table, methods_list
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


SIDE = 56
WEIGHTS = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def linear(images: torch.Tensor) -> torch.Tensor:
    """A p whose fall, when a pixel is made black, is known: its weight times its value."""
    weighted: torch.Tensor = (images * WEIGHTS / WEIGHTS.sum()).sum(dim=(1, 2, 3))
    return weighted


def pictures(count: int, channels: int = 1) -> np.ndarray:
    """Noise whose smallest value is 0, so that Quantus' black is black."""
    images = np.random.default_rng(0).random((count, channels, SIDE, SIDE), dtype=np.float32)
    images[:, 0, 0, 0] = 0
    return images


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


BOXES = np.stack([np.roll(BOX, 3 * i, axis=0) for i in range(4)])
PATIENTS = ["a", "b", "c", "d"]


def table_of_three() -> dict[str, dict]:
    """The explanation module perfect, GradCAM++ half right, the mean of all boxes."""
    maps = {
        "nemt": BOXES.astype(np.float32),
        "gradcam++": np.roll(BOXES, 2, axis=2).astype(np.float32),
        "mean_of_boxes": np.broadcast_to(BOXES.mean(axis=0, dtype=np.float32), BOXES.shape),
    }
    return compare(maps, BOXES, np.zeros((4, 1, 20, 20), np.float32), None, PATIENTS)


def test_a_map_that_ignores_the_image_gains_nothing_over_others() -> None:
    table = table_of_three()
    assert table["nemt"]["mass"]["value"] == 1
    assert table["nemt"]["mass_less_others"]["value"] > 0.5
    assert table["mean_of_boxes"]["mass"]["value"] > BOX.mean()
    assert table["mean_of_boxes"]["mass_less_others"]["value"] == pytest.approx(0, abs=1e-6)


def test_the_explanation_module_against_each_method() -> None:
    table = table_of_three()
    assert "nemt_less" not in table["nemt"]
    cam = table["gradcam++"]
    assert cam["mass"]["value"] == 0.5
    assert cam["nemt_over"]["mass"] == {"value": 2, "low": 2, "high": 2, "images": 4}
    difference = cam["nemt_less"]["mass_less_others"]["value"]
    own = [table[key]["mass_less_others"]["value"] for key in ("nemt", "gradcam++")]
    assert difference == pytest.approx(own[0] - own[1], abs=2e-4)
    assert cam["nemt_less"]["mass"]["low"] == cam["nemt_less"]["mass"]["high"] == 0.5


def test_a_representation_has_no_faithfulness() -> None:
    assert all("faithfulness" not in row for row in table_of_three().values())


def test_undefined_faithfulness_is_left_out_and_counted() -> None:
    images = pictures(4)
    effect = (WEIGHTS.numpy() * images[:, 0]).astype(np.float32)
    some, none = effect.copy(), np.ones_like(effect)
    some[1] = 0.3
    regions = np.zeros(effect.shape, bool)
    regions[:, :10] = True
    maps = {"nemt": effect, "gradcam++": some, "random": none}
    table = compare(maps, regions, images, linear, PATIENTS)
    assert table["nemt"]["faithfulness"]["images"] == 4
    assert table["gradcam++"]["faithfulness"]["images"] == 3
    assert table["gradcam++"]["faithfulness"]["value"] == pytest.approx(1, abs=1e-3)
    assert table["gradcam++"]["nemt_less"]["faithfulness"]["images"] == 3
    assert "faithfulness" not in table["random"]
    described = {key: METHODS[key].describe() for key in maps}
    lines = localisation_table({"localisation": table, "methods": described}).splitlines()
    assert "n = 3" in lines[3]
    assert "not defined" in lines[4]


def test_seconds_are_of_one_warm_image_at_a_time() -> None:
    asked = []
    found = seconds(lambda x: asked.append(len(x)), pictures(5), list("abcde"), count=3)
    assert asked == [1] * 4
    assert found["images"] == 3
    assert 0 <= found["low"] <= found["value"] <= found["high"] < 0.1


def test_the_tables_and_the_chart(tmp_path: Path) -> None:
    rows = dict(sorted(table_of_three().items()))  # as a manifest keeps them
    described = {key: METHODS["random"].describe() | {"name": key} for key in rows}
    metrics = {"localisation": rows, "methods": described}
    first, second = localisation_table(metrics), differences_table(metrics)
    heads = [text.strip() for text in first.splitlines()[0].strip("|").split("|")]
    assert [text.split(" ")[0] for text in heads] == [
        "method", "relevance", "relevance", "complexity", "sparseness", "faithfulness", "s/image",
    ]  # fmt: skip
    for text in (first, second):
        methods = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
        assert methods == ["nemt", "gradcam++", "mean_of_boxes"]
    assert "2.00 (2.00 to 2.00)" in second.splitlines()[3]
    assert methods_list(metrics).count("uniform noise") == 3
    draw_comparison(tmp_path / "chart.png", metrics)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


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
