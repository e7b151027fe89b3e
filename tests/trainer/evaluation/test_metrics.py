"""Metrics with known answers, and against scikit-learn and Quantus."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import random_network
from trainer.evaluation import removal
from trainer.evaluation.attributions import random_maps
from trainer.evaluation.maps import Attributed
from trainer.evaluation.methods import METHODS
from trainer.evaluation.scores import Evaluated, mean_curves, methods_table, scores
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
from trainer.report.charts import draw_bars
from trainer.report.tables import differences_table, methods_list, paper_table
from trainer.statistics import area_under_curve, bootstrap
from trainer.training.classifier import auc_by_source, auc_standard_error
from trainer.training.thresholds import OVERLAP, move, youden


def region(rows: slice, columns: slice, side: int = 20) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[rows, columns] = True
    return mask


BOX = region(slice(4, 12), slice(6, 10))  # 8 %


@dataclass
class Labelled:
    """Examples of two sources: of NIH 47 positives and 64 negatives, of RSNA 5 and 16."""

    labels: np.ndarray
    cases: list[SimpleNamespace]


def test_the_standard_error_of_an_auc_is_what_repetition_shows() -> None:
    counts = {"NIH": (47, 64), "RSNA": (5, 16)}
    examples = Labelled(
        labels=np.concatenate([np.repeat([1.0, 0.0], each) for each in counts.values()]),
        cases=[SimpleNamespace(source=s) for s, each in counts.items() for _ in range(sum(each))],
    )
    random = np.random.default_rng(1)
    apart = 1.2  # normal scores: an AUC of 0.80
    drawn = [
        np.mean(list(auc_by_source(examples, random.normal(apart * examples.labels)).values()))
        for _ in range(500)
    ]
    error = auc_standard_error(examples, float(np.mean(drawn)))
    assert 1.0 < error / np.std(drawn) < 1.3  # it is known to err on the large side


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


def compare(maps: dict[str, np.ndarray], of: Evaluated) -> dict[str, dict]:
    """The table of maps that every image has one of."""
    columns = {
        key: scores(of, Attributed(found=dict(enumerate(each))), gated=key == "nemt")
        for key, each in maps.items()
    }
    return methods_table(columns, PATIENTS)


def table_of_three() -> dict[str, dict]:
    """The explanation module perfect, GradCAM++ half right, the mean of all boxes."""
    maps = {
        "nemt": BOXES.astype(np.float32),
        "gradcam++": np.roll(BOXES, 2, axis=2).astype(np.float32),
        "mean_of_boxes": np.broadcast_to(BOXES.mean(axis=0, dtype=np.float32), BOXES.shape),
    }
    images = np.zeros((4, 1, 20, 20), np.float32)
    return compare(maps, Evaluated(images=images, truth=BOXES, probability=None))


def test_a_map_that_ignores_the_image_gains_nothing_over_others() -> None:
    found = table_of_three()
    assert found["nemt"]["relevance_mass"]["mean"] == 1
    assert found["nemt"]["relevance_mass_less_others"]["mean"] > 0.5
    assert found["nemt"]["pointing_game"]["mean"] == found["nemt"]["iou"]["mean"] == 1
    ignoring = found["mean_of_boxes"]
    assert ignoring["relevance_mass"]["mean"] > BOX.mean()
    assert ignoring["relevance_mass_less_others"]["mean"] == pytest.approx(0, abs=1e-6)


def test_the_explanation_module_against_each_method() -> None:
    found = table_of_three()
    assert "nemt_less" not in found["nemt"]
    cam = found["gradcam++"]
    assert cam["relevance_mass"]["mean"] == 0.5
    assert cam["iou"]["mean"] == pytest.approx(1 / 3, abs=1e-4)
    assert cam["nemt_over"]["relevance_mass"] == {"mean": 2, "lo": 2, "hi": 2, "n": 4}
    name = "relevance_mass_less_others"
    own = [found[key][name]["mean"] for key in ("nemt", "gradcam++")]
    assert cam["nemt_less"][name]["mean"] == pytest.approx(own[0] - own[1], abs=2e-4)
    assert cam["nemt_less"]["relevance_mass"]["lo"] == 0.5
    assert cam["nemt_less"]["relevance_mass"]["hi"] == 0.5


def test_a_representation_has_no_faithfulness() -> None:
    assert all("faithfulness" not in row for row in table_of_three().values())


def test_methods_that_saw_a_part_are_compared_on_that_part() -> None:
    images = np.zeros((4, 1, 20, 20), np.float32)
    of = Evaluated(images=images, truth=BOXES, probability=None)
    ours = scores(of, Attributed(found=dict(enumerate(BOXES.astype(np.float32)))), gated=True)
    half = {i: np.roll(BOXES[i], 2, axis=1).astype(np.float32) for i in (1, 3)}
    theirs = scores(of, Attributed(found=half))
    assert np.isnan(theirs["relevance_mass"][[0, 2]]).all()
    found = methods_table({"nemt": ours, "slow": theirs}, PATIENTS)["slow"]
    assert found["relevance_mass"]["n"] == found["nemt_less"]["relevance_mass"]["n"] == 2
    assert found["nemt_over"]["relevance_mass"]["n"] == 2
    assert scores(of, Attributed(failed={0: "no"})) == {}


def test_undefined_faithfulness_is_left_out_and_counted() -> None:
    images = pictures(4)
    effect = (WEIGHTS.numpy() * images[:, 0]).astype(np.float32)
    some, none = effect.copy(), np.ones_like(effect)
    some[1] = 0.3
    regions = np.zeros(effect.shape, bool)
    regions[:, :10] = True
    maps = {"nemt": effect, "gradcam++": some, "random": none}
    found = compare(maps, Evaluated(images=images, truth=regions, probability=linear))
    assert found["nemt"]["faithfulness"]["n"] == 4
    assert found["gradcam++"]["faithfulness"]["n"] == 3
    assert found["gradcam++"]["faithfulness"]["mean"] == pytest.approx(1, abs=1e-3)
    assert found["gradcam++"]["nemt_less"]["faithfulness"]["n"] == 3
    assert "faithfulness" not in found["random"]
    lines = paper_table({"methods": described(found)}).splitlines()
    assert "n = 3" in lines[3]
    assert "not defined" in lines[4]


def described(rows: dict[str, dict], **names: str) -> dict[str, dict]:
    """Rows of figures with what is said of their methods."""
    more = {"asked": 4, "failed": 0, "failures": []}
    return {
        key: row | METHODS["random"].describe() | {"name": key} | more | names
        for key, row in rows.items()
    }


def test_the_tables_and_the_chart(tmp_path: Path) -> None:
    rows = dict(sorted(table_of_three().items()))  # as a manifest keeps them
    summary = {"methods": described(rows)}
    first, second = paper_table(summary), differences_table(summary)
    heads = [text.strip() for text in first.splitlines()[0].strip("|").split("|")]
    assert [text.split(" ")[0] for text in heads] == [
        "method", "relevance", "relevance", "complexity", "sparseness", "faithfulness", "s/image",
    ]  # fmt: skip
    for text in (first, second):
        methods = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
        assert methods == ["nemt", "gradcam++", "mean_of_boxes"]
    assert "2.00 (2.00 to 2.00)" in second.splitlines()[3]
    assert methods_list(summary).count("uniform noise") == 3
    draw_bars(tmp_path / "chart.png", summary)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    summary["methods"]["nemt"] |= {"failed": 1, "failures": ["RuntimeError: no"]}
    assert "nemt, failed on 1" in paper_table(summary)
    assert "RuntimeError: no" in methods_list(summary)


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


def test_a_random_maps_mass_is_the_regions_share() -> None:
    images = np.random.default_rng(1).random((40, 1, 20, 20), np.float32)
    maps = random_maps(random_network(), images)
    truth = np.broadcast_to(BOX, (40, 20, 20))
    columns = scores(
        Evaluated(images=images, truth=truth, probability=None),
        Attributed(found=dict(enumerate(maps))),
    )
    found = methods_table({"random": columns}, [str(i) for i in range(40)])["random"][
        "relevance_mass"
    ]
    assert found["lo"] <= BOX.mean() <= found["hi"]
    assert found["hi"] - found["lo"] < 0.02


def bright(images: torch.Tensor) -> torch.Tensor:
    """P is the share of the region's light that is left."""
    return images[:, 0][:, torch.from_numpy(BOX)].mean(dim=1)


def test_removal_curves_known_answers() -> None:
    image = np.ones((1, 20, 20), np.float32)
    share = BOX.mean()
    for attribution, first, last in ((BOX, 0, 1), (~BOX, 1, 0)):
        both = removal.curves(attribution.astype(np.float32), image, bright, "black", "cpu")
        steps = removal.STEPS + 1
        assert both.deletion.shape == both.insertion.shape == (steps,)
        assert both.deletion + both.insertion == pytest.approx(np.ones(steps))
        assert (both.deletion[0], both.deletion[-1]) == (1, 0)
        after = both.deletion[int(np.ceil(share * removal.STEPS)) : -1]
        assert after[:-2] == pytest.approx(np.full(len(after) - 2, first))
        area = share / 2 if last else 1 - share / 2
        assert removal.area_under(both.deletion) == pytest.approx(area, abs=0.04)


def test_deletion_is_quantus_pixel_flipping() -> None:
    """Its curve begins after the first step; both remove the same pixels, highest first."""
    from quantus import PixelFlipping

    images = pictures(3)
    side = images.shape[-1]
    maps = np.random.default_rng(2).random((3, side, side)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PixelFlipping(
            features_in_step=side * side // removal.STEPS, perturb_baseline=0.0,
            disable_warnings=True, normalise=False, abs=False,
        )(
            model=_Module(linear), x_batch=images.copy(), y_batch=np.zeros(3, int),
            a_batch=maps[:, None], channel_first=True, softmax=False, device="cpu",
        )  # fmt: skip
    for image, attribution, curve in zip(images, maps, expected, strict=True):
        found = removal.curves(attribution, image, linear, "black", "cpu")
        assert found.deletion[1:] == pytest.approx(np.array(curve), abs=1e-6)


class _Module(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images)[:, None]


def test_road_is_its_librarys_and_knows_right_from_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam.metrics.road import ROADCombined

    image = np.random.default_rng(3).random((1, 20, 20), np.float32) * 0.2
    image[0, BOX] += 0.8
    right = (BOX + np.random.default_rng(4).random((20, 20)) * 0.1).astype(np.float32)
    found = removal.road(right, image, bright, "cpu")
    assert found > 0.1
    assert removal.road(1 - right, image, bright, "cpu") < -0.1
    assert removal.road(np.ones((20, 20), np.float32), image, bright, "cpu") == 0
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ROADCombined(percentiles=[90, 70, 50])(
            torch.from_numpy(image)[None], right[None], [lambda p: p], bright
        )
    assert found == pytest.approx(float(expected[0]), abs=1e-6)


def test_thorough_scores_and_their_curves() -> None:
    images = np.ones((4, 1, 20, 20), np.float32)
    images[:, :, ::2] = 0.9
    of = Evaluated(images=images, truth=BOXES, probability=bright, thorough=True)
    maps = Attributed(found={i: BOXES[0].astype(np.float32) for i in range(4)})
    columns = scores(of, maps, gated=True)
    assert {"deletion_black", "insertion_blur", "road", "faithfulness"} <= set(columns)
    assert (columns["deletion_black"] < columns["insertion_black"]).all()
    curves = mean_curves(of, maps)
    assert set(curves) == {"deletion_black", "deletion_blur", "insertion_black", "insertion_blur"}
    assert removal.area_under(curves["deletion_black"]) == pytest.approx(
        columns["deletion_black"].mean()
    )


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
