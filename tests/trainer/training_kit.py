"""What the tests of training share: small recipes, and runs that are stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import read_arguments
from trainer.progress import Logged, Silent
from trainer.run import Trained, train
from trainer.training import loop
from trainer.training.recipe import Recipe
from trainer.training.recipe_file import preset

BACKBONE = "test_efficientnet"

QUICK: dict[str, Any] = {
    "input.size": 64,
    "target_model.backbone": BACKBONE,
    "target_model.pretrained": False,
    "target_model.epochs": 1,
    "target_model.teachers": 0,
    "explanation_module.epochs": 1,
    "run.batch": 8,
    "run.threads": 1,
}
"""Values that make a run of a few dozen images take seconds."""


def settings(values: Mapping[str, Any]) -> list[str]:
    """Options `--set` for these values, by dotted name."""
    return [word for name, value in values.items() for word in ("--set", f"{name}={_toml(value)}")]


def _toml(value: Any) -> str:
    return json.dumps(value)


def quick(**sections: Mapping[str, Any]) -> list[str]:
    """Options of a small run: `QUICK`, and the values of these sections."""
    changes = {
        f"{s}.{name}": value for s, table in sections.items() for name, value in table.items()
    }
    return settings(QUICK | changes)


def small_recipe(recipe: str = "default", **sections: Mapping[str, Any]) -> Recipe:
    """A preset with the values of `QUICK` and of these sections."""
    changes = {
        f"{s}.{name}": value for s, table in sections.items() for name, value in table.items()
    }
    return preset(recipe, **(QUICK | changes))


def trained(arguments: Sequence[str]) -> Trained:
    """Training alone, by the arguments of a `nemt-train`: no thresholds, no evaluation."""
    recipe, places, _ = read_arguments(arguments)
    return train(recipe, places, Logged(Silent()))


def stop_after(steps: int, arguments: Sequence[str]) -> None:
    """Training that is interrupted after so many steps, with a checkpoint after each of them."""
    recipe, places, _ = read_arguments(arguments)
    left, whole = iter(range(steps)), loop.take_step

    def take_step(*step: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(*step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", take_step)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, places, Logged(Silent()), save_every=-1.0)


def losses(out: Path, part: str) -> list[float]:
    """Training losses of a part, one an epoch, as `metrics.csv` says; [] if it is absent."""
    path = out / "run" / "metrics.csv"
    if not path.is_file():
        return []
    rows = [line.split(",") for line in path.read_text("utf-8").splitlines()[1:]]
    return [
        float(value) for name, _, figure, value in rows if (name, figure) == (part, "train_loss")
    ]
