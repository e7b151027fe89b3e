"""The stage of the explanation module: a mask that collapses, and which epoch is kept."""

from collections.abc import Iterator
from typing import Any

import pytest

from nemt_dicom.errors import TrainingError
from tests.trainer.synthetic_sets import write_nih
from tests.trainer.training_kit import small_recipe
from trainer.prepare import Prepared, make_repeatable, prepare
from trainer.progress import Silent
from trainer.training import explanation_stage
from trainer.training.distributed import Team
from trainer.training.explanation_stage import (
    LARGEST_AREA,
    SMALLEST_AREA,
    ExplanationStage,
    require_not_collapsed,
)
from trainer.training.loop import Run, fit
from trainer.training.places import Places

MODULE = {"area_warmup": 0.0, "scaled": False, "agreement": 0.0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A small set, and a network whose p is above a half: there is something to explain."""
    folder = tmp_path_factory.mktemp("set")
    data = write_nih(folder / "nih", count=32)
    places = Places(folders=(data,), out=folder / "out", cache=folder / "cache")
    recipe = small_recipe()
    make_repeatable(recipe)
    ready = prepare(recipe, places, Team.join("cpu"), Silent())
    ready.network.target_model.get_classifier().bias.data += 1.0
    return ready


def trained(prepared: Prepared, **module: Any) -> Run:
    """A stage with these settings, trained to its end."""
    recipe = small_recipe(explanation_module=MODULE | module)
    run = Run.bare(recipe, prepared.network, Team.join("cpu"))
    data = prepared.train, prepared.validation
    fit(ExplanationStage(prepared.network, *data, recipe), prepared.train, run)
    return run


def test_a_mask_that_vanishes_ends_the_run(prepared: Prepared) -> None:
    with pytest.raises(TrainingError, match=r"to nothing.*smaller explanation_module\.area_weight"):
        trained(prepared, area_weight=1000.0, epochs=10)


def test_what_counts_as_a_collapse() -> None:
    require_not_collapsed(0.2)
    for area, text in (
        (SMALLEST_AREA / 2, "to nothing"),
        ((1 + LARGEST_AREA) / 2, "over everything"),
        (float("nan"), "NaN"),
    ):
        with pytest.raises(TrainingError, match=text):
            require_not_collapsed(area)


@pytest.mark.parametrize(
    ("areas", "ends"),
    [([1.0, 0.2, 1.0, 0.2], None), ([0.2, 1.0, 1.0, 0.2], 3), ([0.2, 0.2, 0.2, 0.0], 4)],
    ids=["passing", "twice in a row", "at the end"],
)
def test_a_collapse_may_lie_on_the_way(
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    areas: list[float],
    ends: int | None,
) -> None:
    left: Iterator[float] = iter(areas)

    def validated(*_: Any) -> dict[str, float]:
        return {"loss": 0.0, "area_positive": next(left)}

    monkeypatch.setattr(explanation_stage, "validate", validated)
    if ends is None:
        trained(prepared, epochs=4)
    else:
        with pytest.raises(TrainingError):
            trained(prepared, epochs=4)
    assert len(list(left)) == (0 if ends is None else len(areas) - ends)


@pytest.mark.parametrize(("keep", "kept"), [("last", 3), ("loss", 2), ("faithful", 1)])
def test_which_epoch_is_kept(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    losses, faithful = iter([3.0, 1.0, 2.0]), iter([0.3, 0.1, 0.2])

    def validated(*_: Any) -> dict[str, float]:
        return {"loss": next(losses), "area_positive": 0.2}

    recipe = small_recipe(explanation_module=MODULE | {"epochs": 3, "keep": keep})
    monkeypatch.setattr(explanation_stage, "validate", validated)
    monkeypatch.setattr(explanation_stage, "mean_faithfulness", lambda *_: next(faithful))
    run = Run.bare(recipe, prepared.network, Team.join("cpu"))
    notes: list[str] = []
    run.progress.note = notes.append  # type: ignore[method-assign]
    data = prepared.train, prepared.validation
    fit(ExplanationStage(prepared.network, *data, recipe), prepared.train, run)
    assert notes == [f"explanation module: kept as after epoch {kept}"]
