"""Scores of maps with known answers, and how methods are compared."""

import numpy as np
import pytest

from nemt_dicom.model.evaluation import Figure, Scores
from tests.conftest import random_network
from tests.trainer.map_kit import BOX, BOXES, WEIGHTS, bright, linear, pictures
from trainer.evaluation import removal
from trainer.evaluation.attributions import random_maps
from trainer.evaluation.maps import Attributed
from trainer.evaluation.scores import (
    Compared,
    MethodScores,
    describe_metrics,
    mean_curves,
    methods_table,
    scores,
)
from trainer.evaluation.settings import EvaluationSettings
from trainer.statistics import Patients

PATIENTS = Patients(("a", "b", "c", "d"), 200)
THOROUGH = EvaluationSettings(thorough=True)


def attributed(maps: np.ndarray) -> Attributed:
    """A map of every image."""
    return Attributed(by_row=dict(enumerate(maps.astype(np.float32))))


def compare(maps: dict[str, np.ndarray], of: Compared) -> dict[str, MethodScores]:
    columns = {
        key: scores(of, attributed(each), is_mask=key == "nemt") for key, each in maps.items()
    }
    return methods_table(columns, PATIENTS)


def table_of_three() -> dict[str, MethodScores]:
    """The explanation module perfect, GradCAM++ half right, the mean of all boxes."""
    maps = {
        "nemt": BOXES,
        "gradcam++": np.roll(BOXES, 2, axis=2),
        "mean_of_boxes": np.broadcast_to(BOXES.mean(axis=0, dtype=np.float32), BOXES.shape),
    }
    images = np.zeros((4, 1, 20, 20), np.float32)
    return compare(maps, Compared(images=images, truth=BOXES, probability=None))


def value(figure: Figure | None) -> float:
    assert figure is not None
    return figure.mean


def against(row: MethodScores) -> tuple[Scores, Scores]:
    assert row.nemt_less is not None
    assert row.nemt_over is not None
    return row.nemt_less, row.nemt_over


def test_a_map_that_ignores_the_image_gains_nothing_over_others() -> None:
    table = table_of_three()
    ours, ignoring = table["nemt"].scores, table["mean_of_boxes"].scores
    assert value(ours.relevance_mass) == 1
    assert value(ours.relevance_mass_less_others) > 0.5
    assert value(ours.pointing_game) == value(ours.iou) == 1
    assert value(ignoring.relevance_mass) > BOX.mean()
    assert value(ignoring.relevance_mass_less_others) == pytest.approx(0, abs=1e-6)


def test_the_explanation_module_against_each_method() -> None:
    table = table_of_three()
    assert table["nemt"].nemt_less is None
    cam = table["gradcam++"]
    less, over = against(cam)
    assert value(cam.scores.relevance_mass) == 0.5
    assert value(cam.scores.iou) == pytest.approx(1 / 3, abs=1e-4)
    assert over.relevance_mass == Figure(mean=2, lo=2, hi=2, n=4)
    difference = value(table["nemt"].scores.relevance_mass_less_others) - value(
        cam.scores.relevance_mass_less_others
    )
    assert value(less.relevance_mass_less_others) == pytest.approx(difference, abs=2e-4)
    assert less.relevance_mass == Figure(mean=0.5, lo=0.5, hi=0.5, n=4)


def test_a_representation_has_no_faithfulness() -> None:
    assert all(row.scores.faithfulness is None for row in table_of_three().values())
    of = Compared(images=np.zeros((1, 1, 4, 4), np.float32), truth=None, probability=None)
    with pytest.raises(ValueError, match="no probability"):
        of.response(0)


def test_methods_that_saw_a_part_are_compared_on_that_part() -> None:
    images = np.zeros((4, 1, 20, 20), np.float32)
    of = Compared(images=images, truth=BOXES, probability=None)
    ours = scores(of, attributed(BOXES), is_mask=True)
    half = {i: np.roll(BOXES[i], 2, axis=1).astype(np.float32) for i in (1, 3)}
    theirs = scores(of, Attributed(by_row=half))
    assert np.isnan(theirs["relevance_mass"][[0, 2]]).all()
    row = methods_table({"nemt": ours, "slow": theirs}, PATIENTS)["slow"]
    less, over = against(row)
    for figures in (row.scores, less, over):
        assert figures.relevance_mass is not None
        assert figures.relevance_mass.n == 2
    assert scores(of, Attributed(failed={0: "no"})) == {}


def test_undefined_faithfulness_is_left_out_and_counted() -> None:
    images = pictures(4)
    effect = (WEIGHTS.numpy() * images[:, 0]).astype(np.float32)
    some, none = effect.copy(), np.ones_like(effect)
    some[1] = 0.3
    regions = np.zeros(effect.shape, bool)
    regions[:, :10] = True
    maps = {"nemt": effect, "gradcam++": some, "random": none}
    table = compare(maps, Compared(images=images, truth=regions, probability=linear))
    ours, cam = table["nemt"].scores.faithfulness, table["gradcam++"].scores.faithfulness
    assert ours is not None
    assert cam is not None
    assert (ours.n, cam.n) == (4, 3)
    assert cam.mean == pytest.approx(1, abs=1e-3)
    less, _ = against(table["gradcam++"])
    assert less.faithfulness is not None
    assert less.faithfulness.n == 3
    assert table["random"].scores.faithfulness is None


def test_a_random_maps_mass_is_the_regions_share() -> None:
    images = np.random.default_rng(1).random((40, 1, 20, 20), np.float32)
    maps = random_maps(random_network(), images)
    truth = np.broadcast_to(BOX, (40, 20, 20))
    columns = scores(Compared(images=images, truth=truth, probability=None), attributed(maps))
    patients = Patients(tuple(str(i) for i in range(40)), 500)
    mass = methods_table({"random": columns}, patients)["random"].scores.relevance_mass
    assert mass is not None
    assert mass.lo <= BOX.mean() <= mass.hi
    assert mass.hi - mass.lo < 0.02


def test_thorough_scores_and_their_curves() -> None:
    images = np.ones((4, 1, 20, 20), np.float32)
    images[:, :, ::2] = 0.9
    of = Compared(images=images, truth=BOXES, probability=bright, settings=THOROUGH)
    maps = attributed(np.stack([BOXES[0]] * 4))
    columns = scores(of, maps, is_mask=True)
    assert {"deletion_black", "insertion_blur", "road", "faithfulness"} <= set(columns)
    assert set(columns) <= set(Scores.model_fields)
    assert (columns["deletion_black"] < columns["insertion_black"]).all()
    curves = mean_curves(of, maps)
    assert set(curves) == {"deletion_black", "deletion_blur", "insertion_black", "insertion_blur"}
    assert removal.area_under(curves["deletion_black"]) == pytest.approx(
        columns["deletion_black"].mean()
    )


def test_settings_decide_the_steps_and_the_subset() -> None:
    settings = EvaluationSettings(thorough=True, subset=2, removal_steps=4)
    images = np.ones((4, 1, 20, 20), np.float32)
    of = Compared(images=images, truth=BOXES, probability=bright, settings=settings)
    columns = scores(of, attributed(BOXES), is_mask=True)
    assert np.isfinite(columns["road"]).sum() == 2
    assert {len(curve) for curve in mean_curves(of, attributed(BOXES)).values()} == {5}
    told = describe_metrics(20, settings)
    assert "4 steps" in told["deletion, insertion"]
    assert "at most 2 images" in told["ROAD"]
    assert "2000 resamples" in told["interval"]
