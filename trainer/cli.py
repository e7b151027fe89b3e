"""nemt-train: labelled images in, a bundle for `nemt-dicom serve` out."""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from nemt_dicom.errors import NemtError, TrainingError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation_schema2 import from_schema_2

from .ablation import run_ablation
from .data.examples import default_cache
from .data.layouts import canonical, file_name
from .dry_run import dry_run
from .memory import keep_memory
from .options import build_parser
from .progress import Bars, Progress, Silent
from .report.tables import differences_table, figures_table, paper_table
from .run import run
from .training.precision import has_bfloat16, require_device
from .training.recipe import (
    FORMERLY,
    NEM_U,
    OF_THE_TARGET_MODEL,
    PRESETS,
    Places,
    TrainingConfig,
)

PLACES = {field.name for field in fields(Places)}
RECIPE = {field.name for field in fields(TrainingConfig)}
SERVED_OTHERWISE = {"full_from", "gamma", "sensitivity", "threads", "device", "bfloat16"}
"""What of a recipe says how a module that is kept is served, measured and computed."""


def read_arguments(arguments: Sequence[str] | None) -> tuple[TrainingConfig, Places, str]:
    """Recipe, places and what to do: "run", "dry_run" or "ablation". Raises `TrainingError`."""
    given = vars(build_parser().parse_args(arguments))
    asked = [name for name in ("dry_run", "ablation") if given.pop(name, False)]
    if len(asked) > 1:
        raise TrainingError("--dry-run and --ablation: name one of them")
    task = asked[0] if asked else "run"
    preset = given.pop("preset")
    recipe = dict(PRESETS[preset])
    if given.get("objective") == "nem-u":
        recipe |= NEM_U[preset]
    places = {name: given.pop(name) for name in list(given) if name in PLACES}
    places["folders"] = tuple(places.get("folders", [Path.cwd()]))
    places.setdefault("out", Path("runs", file_name(canonical(given["target"]))))
    for names, group in (("output_names", places), ("auxiliary", given)):
        if names in group:
            group[names] = tuple(n.strip() for n in group[names].split(",") if n.strip())
    places.setdefault("cache", default_cache())
    _require_of_the_target_model(places, given)
    if "target_model" in places and places["target_model"].is_dir():
        kept = RECIPE - SERVED_OTHERWISE if places.get("keep_module") else {*OF_THE_TARGET_MODEL}
        _require_none(given, kept, f"{places['target_model']} says them")
        recipe |= _of_bundle(places)
    elif places.get("keep_module"):
        raise TrainingError("--keep-module: name the bundle by --target-model")
    elif "target_model" in places or task == "ablation":
        recipe["teachers"] = 0
    untrained = "target_model" in places or given.get("objective") == "nem-u"
    if untrained and given.get("teachers"):
        _require_none(given, {"teachers"}, "no target model is trained")
    given.setdefault("bfloat16", has_bfloat16(given.get("device", TrainingConfig.device)))
    return TrainingConfig(**(recipe | given)), Places(**places), task


def _require_of_the_target_model(places: dict[str, Any], given: dict[str, Any]) -> None:
    """What is said of a target model's outputs and start has to have one that it is said of."""
    outputs = {"output", "output_names", "activation"}
    if "target_model" not in places:
        _require_none(places, outputs, "without --target-model")
    elif given.get("objective") == "nem-u":
        _require_none(places, outputs, "a representation is explained")
    elif places["target_model"].is_dir():
        _require_none(places, outputs - {"output"}, f"{places['target_model']} says them")
    if "target_model" in places:
        _require_none(places, {"initial_weights"}, "the target model is not trained")


def _require_none(given: dict[str, Any], names: set[str], reason: str) -> None:
    """Raises `TrainingError` where something is asked for that would do nothing."""
    if idle := sorted(({*given} & names) - {"target"}):
        raise TrainingError(f"settings that change nothing here ({reason}): {', '.join(idle)}")


def _of_bundle(places: dict[str, Any]) -> dict[str, Any]:
    """Makes a bundle's target model the one explained; what its recipe says of its training."""
    bundle = Bundle.load(places["target_model"])
    if not bundle.architecture.outputs:
        raise TrainingError(f"{bundle.folder} explains a representation and has no classifier")
    places["bundle"], places["target_model"] = bundle, bundle.weights
    places["output_names"] = bundle.architecture.outputs
    places["activation"] = bundle.architecture.activation
    known, taken = FORMERLY | bundle.manifest.training["recipe"], set(OF_THE_TARGET_MODEL)
    if places.get("keep_module"):
        taken = RECIPE - SERVED_OTHERWISE | {"sensitivity"}
    found = {name: value for name, value in known.items() if name in taken}
    return found | {"auxiliary": tuple(found.get("auxiliary", ()))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `nemt-train`; returns the exit status."""
    keep_memory()
    first = os.environ.get("RANK", "0") == "0"
    console = Console(stderr=True)
    try:
        config, places, task = read_arguments(arguments)
        require_device(config.device)
        with Bars(console) if first else _Nobody() as progress:
            if task == "dry_run":
                text = dry_run(config, places, progress)
            elif task == "ablation":
                text = run_ablation(config, places, progress)
            else:
                bundle = run(config, places, progress)
                text = "" if bundle is None else _summary(bundle)
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


def _how_to_go_on(arguments: Sequence[str] | None) -> str:
    _, places, task = read_arguments(arguments)
    if task == "ablation":
        return "; the same command goes on with what is missing"
    there = (places.out / "run" / "checkpoint.pt").is_file()
    return "; the same command with --resume goes on" if task == "run" and there else ""


class _Nobody(Silent):
    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _summary(bundle: Bundle) -> str:
    evaluation = from_schema_2(bundle.manifest.metrics)
    parts: list[str] = [figures_table(evaluation), paper_table(evaluation)]
    parts.append(differences_table(evaluation))
    parts.append(
        f"bundle {bundle.digest[:12]} in {bundle.folder}; model card: "
        f"{bundle.folder / 'MODEL_CARD.md'}"
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
