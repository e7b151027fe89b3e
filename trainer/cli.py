"""nemt-train: labelled images in, a bundle for `nemt-dicom serve` out."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from nemt_dicom.errors import NemtError, TrainingError
from nemt_dicom.model.bundle import Bundle

from .data.examples import default_cache
from .data.layouts import canonical, file_name
from .options import build_parser
from .progress import Bars, Progress, Silent
from .provenance import training_of
from .training.checkpoint import CHECKPOINT
from .training.places import Places
from .training.precision import has_bfloat16, keep_memory, require_device
from .training.recipe import Recipe
from .training.recipe_file import (
    Values,
    changed,
    names,
    nested,
    overlaid,
    read_assignment,
    read_values,
    recorded_values,
    validated,
    written,
)

Options = dict[str, Any]
"""Values of the command line by the name of their option; each option has its own type."""

PLACES = {field.name for field in fields(Places)}
TASKS = ("dry_run", "ablation", "print_recipe")

OPTIONS_OF_THE_RECIPE = {
    "target": "data.target",
    "seed": "run.seed",
    "threads": "run.threads",
    "device": "run.device",
}
"""Options that are short for `--set`."""

UNNAMED = "LABEL"
"""Target of a recipe that is printed before anyone has named one."""

OF_THE_TARGET_MODEL = {
    name
    for name in names()
    if name.startswith(("input.", "target_model.")) or name == "data.validation_share"
}
"""Values of a recipe that describe a target model. A run that reuses a bundle's copies them."""

OF_THIS_RUN = {name for name in names() if name.startswith("serving.")} | {
    "run.threads",
    "run.device",
    "run.bfloat16",
}
"""Values that are this run's even if the bundle's explanation module is kept."""


def read_arguments(arguments: Sequence[str] | None) -> tuple[Recipe, Places, str]:
    """Recipe, places and task: "run", "dry_run", "ablation" or "print_recipe".

    Precedence: preset, file of --recipe, bundle of --target-model, --set. Raises `TrainingError`,
    and `SystemExit` if the command line is wrong.
    """
    parser = build_parser()
    options = vars(parser.parse_args(arguments))
    task = _pop_task(options)
    said = _pop_said(options)
    values = read_values(options.pop("recipe", "default"))
    if "target" not in values.get("data", {}) and "data.target" not in said:
        if task != "print_recipe":
            parser.error("name the label to explain by --target")
        said["data.target"] = UNNAMED
    target = said["data.target"] if "data.target" in said else values["data"]["target"]
    places = _pop_places(options, str(target))
    module = values["explanation_module"]
    objective = str(said.get("explanation_module.objective", module["objective"]))
    _require_target_model_options(places, objective)
    if "target_model" in places and places["target_model"].is_dir():
        values = _with_bundle(values, said, places)
    elif places.get("keep_module"):
        raise TrainingError("--keep-module: name the bundle by --target-model")
    elif "target_model" in places or task == "ablation":
        values = overlaid(values, {"target_model": {"teachers": 0}})
    if ("target_model" in places or objective == "nem-u") and said.get("target_model.teachers"):
        _require_none(said, {"target_model.teachers"}, "no target model is trained")
    recipe = validated(overlaid(values, nested(said)))
    if recipe.run.bfloat16 == "auto" and task != "print_recipe":
        recipe = changed(recipe, {"run.bfloat16": has_bfloat16(recipe.run.device)})
    return recipe, Places(**places), task


def _pop_task(options: Options) -> str:
    asked = [name for name in TASKS if options.pop(name, False)]
    if len(asked) > 1:
        words = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise TrainingError(f"{words}: name one of them")
    return asked[0] if asked else "run"


def _pop_said(options: Options) -> Options:
    """Values of the recipe that the command line names, by dotted name."""
    said = dict(map(read_assignment, options.pop("assignments", [])))
    short = {OPTIONS_OF_THE_RECIPE[name]: options.pop(name) for name in OPTIONS_OF_THE_RECIPE
             if name in options}  # fmt: skip
    return said | short


def _pop_places(options: Options, target: str) -> Options:
    places = {name: options.pop(name) for name in list(options) if name in PLACES}
    assert not options, options  # every option is a task, a value of the recipe or a place
    places["folders"] = tuple(places.get("folders", [Path.cwd()]))
    places.setdefault("out", Path("runs", file_name(canonical(target))))
    places.setdefault("cache", default_cache())
    if "output_names" in places:
        words = (word.strip() for word in places["output_names"].split(","))
        places["output_names"] = tuple(word for word in words if word)
    return places


def _require_target_model_options(places: Options, objective: str) -> None:
    """Raises `TrainingError` if outputs or a start are named of no target model, or of another."""
    outputs = {"output", "output_names", "activation"}
    if "target_model" not in places:
        _require_none(places, outputs, "without --target-model")
    elif objective == "nem-u":
        _require_none(places, outputs, "a representation is explained")
    elif places["target_model"].is_dir():
        _require_none(places, outputs - {"output"}, f"{places['target_model']} says them")
    if "target_model" in places:
        _require_none(places, {"initial_weights"}, "the target model is not trained")


def _require_none(said: Mapping[str, Any], idle: set[str], reason: str) -> None:
    """Raises `TrainingError` if something is asked for that would do nothing."""
    if asked := sorted({*said} & idle):
        raise TrainingError(f"settings that change nothing here ({reason}): {', '.join(asked)}")


def _with_bundle(values: Values, said: Mapping[str, Any], places: Options) -> Values:
    """Makes a bundle's target model the one explained; its recipe's part in the values."""
    copied = {*names()} - OF_THIS_RUN if places.get("keep_module") else OF_THE_TARGET_MODEL
    _require_none(said, copied - {"data.target", "run.seed"}, f"{places['target_model']} says them")
    bundle = Bundle.load(places["target_model"])
    if not bundle.architecture.outputs:
        raise TrainingError(f"{bundle.folder} explains a representation and has no classifier")
    places["bundle"], places["target_model"] = bundle, bundle.weights
    places["output_names"] = bundle.architecture.outputs
    places["activation"] = bundle.architecture.activation
    recorded = recorded_values(training_of(bundle)[0].recipe)
    dotted = {
        f"{section}.{name}": value
        for section, table in recorded.items()
        for name, value in table.items()
    }
    return overlaid(values, nested({name: v for name, v in dotted.items() if name in copied}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `nemt-train`; returns the exit status."""
    keep_memory()
    first = os.environ.get("RANK", "0") == "0"
    try:
        recipe, places, task = read_arguments(arguments)
        if task == "print_recipe":
            print(_to_start_from(recipe), end="")
            return 0
        require_device(recipe.run.device)
        with Bars(Console(stderr=True)) if first else _Nobody() as progress:
            text = _perform(task, recipe, places, progress)
    except NemtError as error:
        print(f"nemt-train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"nemt-train: stopped{_how_to_go_on(arguments)}", file=sys.stderr)
        return 130
    screen = Console()
    if text and screen.is_terminal:
        screen.print(Markdown(text))
    elif text:
        print(text)  # tables that paste into a report
    return 0


def _to_start_from(recipe: Recipe) -> str:
    """The text of a recipe file; a target that nobody has named is a comment."""
    values = recipe.model_dump()
    if recipe.data.target == UNNAMED:
        del values["data"]["target"]
    return written(values)


def _perform(task: str, recipe: Recipe, places: Places, progress: Progress) -> str:
    """The text that a task leaves to be shown.

    The tasks are imported here, because they need the extra `train` and seconds to load: `--help`
    needs neither.
    """
    from .ablation import run_ablation  # noqa: PLC0415
    from .dry_run import dry_run  # noqa: PLC0415
    from .run import run  # noqa: PLC0415

    if task == "dry_run":
        return dry_run(recipe, places, progress)
    if task == "ablation":
        return run_ablation(recipe, places, progress)
    bundle = run(recipe, places, progress)
    return "" if bundle is None else _summary(bundle)


def _how_to_go_on(arguments: Sequence[str] | None) -> str:
    _, places, task = read_arguments(arguments)
    if task == "ablation":
        return "; the same command goes on with what is missing"
    there = (places.out / "run" / CHECKPOINT).is_file()
    return "; the same command with --resume goes on" if task == "run" and there else ""


class _Nobody(Silent):
    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _summary(bundle: Bundle) -> str:
    from .report.tables import differences_table, figures_table, paper_table  # noqa: PLC0415

    evaluation = bundle.evaluation
    assert evaluation is not None, "a run measures its bundle"
    parts: list[str] = [figures_table(evaluation), paper_table(evaluation)]
    parts.append(differences_table(evaluation))
    parts.append(
        f"model {bundle.model_digest[:12]} in {bundle.folder}; model card: "
        f"{bundle.folder / 'MODEL_CARD.md'}"
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
