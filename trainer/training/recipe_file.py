"""Recipes as files: presets that ship, files of the user, single values of the command line.

A file says only what differs from the preset named by its first line, `preset = "paper"`; without
that line, from "default". So the order of precedence is: preset, file, --set.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import BaseModel, ValidationError

from nemt_dicom.errors import TrainingError

from .recipe import Recipe

Values = dict[str, dict[str, Any]]
"""Values by section and name, not yet validated."""

FOLDER = Path(__file__).parent / "recipes"

PRESETS = ("default", "paper", "nem-u", "paper-nem-u")
"""The recipes that ship, each a file of `FOLDER`."""

RENAMED = {
    "target": "data.target",
    "validation_share": "data.validation_share",
    "size": "input.size",
    "low_percentile": "input.low_percentile",
    "high_percentile": "input.high_percentile",
    "mirror": "augmentation.mirror",
    "noise": "augmentation.noise",
    "backbone": "target_model.backbone",
    "pretrained": "target_model.pretrained",
    "frozen_stages": "target_model.frozen_stages",
    "classifier_epochs": "target_model.epochs",
    "patience": "target_model.patience",
    "classifier_optimiser": "target_model.optimiser",
    "classifier_lr": "target_model.learning_rate",
    "classifier_weight_decay": "target_model.weight_decay",
    "average": "target_model.average",
    "label_smoothing": "target_model.label_smoothing",
    "auxiliary": "target_model.auxiliary",
    "auxiliary_weight": "target_model.auxiliary_weight",
    "mined_weight": "target_model.mined_weight",
    "teachers": "target_model.teachers",
    "occlusion": "target_model.occlusion",
    "objective": "explanation_module.objective",
    "area_weight": "explanation_module.area_weight",
    "area_warmup": "explanation_module.area_warmup",
    "agreement": "explanation_module.agreement",
    "binary_weight": "explanation_module.binary_weight",
    "response": "explanation_module.response",
    "exponent": "explanation_module.exponent",
    "fall_only": "explanation_module.fall_only",
    "scaled": "explanation_module.scaled",
    "fill": "explanation_module.fill",
    "neighbourhood": "explanation_module.neighbourhood",
    "decoder": "explanation_module.decoder",
    "decoder_width": "explanation_module.decoder_width",
    "follows": "explanation_module.follows",
    "mask_epochs": "explanation_module.epochs",
    "mask_patience": "explanation_module.patience",
    "mask_balanced": "explanation_module.balanced",
    "keep": "explanation_module.keep",
    "gamma": "serving.gamma",
    "full_from": "serving.full_from",
    "batch": "run.batch",
    "seed": "run.seed",
    "threads": "run.threads",
    "device": "run.device",
    "bfloat16": "run.bfloat16",
}
"""Names of recipes before 0.8.0, which were flat, and what they are called now."""

LEFT_OUT = {
    "accumulate": 1,
    "augment": True,
    "decoder_norm": "batch",
    "preservation": 0.0,
    "sensitivity": None,
}
"""Switches that recipes had before 0.8.0, and the value that every run has now."""

FORMERLY = {"mask_balanced": False, "keep": "last", "teachers": 0}
"""What the first releases did without naming it in their recipes."""


@cache
def names() -> tuple[str, ...]:
    """Every dotted name, such as "run.seed", in the order of a written recipe."""
    return tuple(
        f"{section}.{name}" for section, model in sections().items() for name in model.model_fields
    )


def sections() -> dict[str, type[BaseModel]]:
    """The sections of a recipe by name."""
    models = {}
    for name, field in Recipe.model_fields.items():
        assert isinstance(field.annotation, type)
        models[name] = field.annotation
    return models


def overlaid(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """The values with those of `changes`, by section and name, in their place."""
    merged = {section: dict(table) for section, table in values.items()}
    for section, table in changes.items():
        merged[section] = merged.get(section, {}) | table
    return merged


def nested(dotted: Mapping[str, Any]) -> Values:
    """Values by section and name, of dotted names."""
    tables: Values = {}
    for name, value in dotted.items():
        section, _, field = name.partition(".")
        tables.setdefault(section, {})[field] = value
    return tables


def read_values(recipe: str) -> Values:
    """The values of a preset, or of a file and of the preset below it. Raises `TrainingError`.

    A preset names no `data.target`.
    """
    path = FOLDER / f"{recipe}.toml" if recipe in PRESETS else Path(recipe)
    if recipe not in PRESETS and not path.is_file():
        raise TrainingError(
            f"--recipe {recipe}: no such file, and no preset; presets: {', '.join(PRESETS)}"
        )
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: is not valid TOML: {error}") from error
    below = content.pop("preset", None if recipe == "default" else "default")
    if below is not None and below not in PRESETS:
        raise TrainingError(f"{path}: preset = {below!r}: allowed: {', '.join(PRESETS)}")
    _require_known(content, path)
    return overlaid(read_values(below) if below else {}, content)


def _require_known(content: dict[str, Any], path: Path) -> None:
    for section, table in content.items():
        if section not in sections() and not (isinstance(table, dict) and table):
            raise TrainingError(f"{path}: {unknown(section)}")
        if not isinstance(table, dict):
            raise TrainingError(
                f"{path}: {section} is a section: write [{section}], and its values below it"
            )
        for name in table:
            if f"{section}.{name}" not in names():
                raise TrainingError(f"{path}: {unknown(f'{section}.{name}')}")


def unknown(name: str) -> str:
    """What is said of a name that no recipe has: near names, then all names by section."""
    end = name.rpartition(".")[2]
    near = [each for each in names() if each.partition(".")[2] == end]
    if name in RENAMED:
        near = [RENAMED[name]]
    near = near or get_close_matches(name, names(), n=2, cutoff=0.75)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    known = "; ".join(f"[{s}] {', '.join(model.model_fields)}" for s, model in sections().items())
    return f"a recipe has no {name!r}{hint} There are: {known}"


def read_assignment(text: str) -> tuple[str, Any]:
    """Name and value of `--set name=value`. The value is TOML; a bare word is a string.

    Raises `TrainingError`.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise TrainingError(f"--set {text}: write --set name=value, such as --set run.batch=16")
    if name not in names():
        raise TrainingError(f"--set {text}: {unknown(name)}")
    try:
        table = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return name, value
    return name, table["value"] if len(table) == 1 else value


def validated(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """The recipe of these values. Raises `TrainingError`, a line for each value that is wrong."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"{source}: {_describe(item)}" for item in error.errors()]
        raise TrainingError("\n".join(lines)) from error


def _describe(item: Any) -> str:
    """One line: the name, its value, what is allowed."""
    where = [part for part in item["loc"] if part not in {"bool", "literal['auto']"}]
    name = ".".join(map(str, where))
    said = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if item["type"] == "missing":
        return f"{name}: is required"
    if not name:
        return said
    value = item.get("input")
    shown = f"{name} = {_toml(value)}" if isinstance(value, str | int | float) else name
    return f"{shown}: {said}"


def preset(recipe: str = "default", **dotted: Any) -> Recipe:
    """A preset or file, for the target "pneumonia", with the values of these dotted names.

    Raises `TrainingError`.
    """
    values = overlaid({"data": {"target": "pneumonia"}}, read_values(recipe))
    return validated(overlaid(values, nested(dotted)))


def changed(recipe: Recipe, dotted: Mapping[str, Any]) -> Recipe:
    """The recipe with other values for these dotted names. Raises `TrainingError`."""
    return validated(overlaid(recipe.model_dump(), nested(dotted)))


def recorded_values(recorded: Mapping[str, Any]) -> Values:
    """The values of a recipe that a bundle keeps, of this release or, with flat names, before it.

    What an early release did not name is what it did; the rest is the default's.
    """
    if "explanation_module" in recorded:
        return overlaid(read_values("default"), recorded)
    flat = {**FORMERLY, **recorded}
    dotted = {RENAMED[n]: v for n, v in flat.items() if n in RENAMED and v is not None}
    return overlaid(read_values("default"), nested(dotted))


def recorded_recipe(recorded: Mapping[str, Any]) -> Recipe:
    """The recipe that a bundle keeps; see `recorded_values`. Raises `TrainingError`."""
    return validated(recorded_values(recorded), "recipe of the bundle")


def left_out(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Switches that a bundle's recipe used and that no recipe has any more."""
    return {
        name: recorded[name]
        for name, always in LEFT_OUT.items()
        if name in recorded and recorded[name] != always
    }


def written(values: Mapping[str, Any]) -> str:
    """The TOML text of a recipe; each value has its meaning above it.

    values: by section and name. A target that is not named yet is a comment.
    """
    parts = []
    for section, model in sections().items():
        purpose = (model.__doc__ or "").split("\n\n", maxsplit=1)[0]
        lines = [*_comment(purpose), f"[{section}]"]
        for name, field in model.model_fields.items():
            lines += ["", *_comment((field.description or "").split("\n\n")[0])]
            if name in values.get(section, {}):
                lines.append(f"{name} = {_toml(values[section][name])}")
            else:
                lines.append(f'# {name} = "..."')
        parts.append("\n".join(lines))
    return "\n\n\n".join(parts) + "\n"


def _comment(text: str) -> Iterable[str]:
    return (f"# {line}" for line in wrap(text, 96))


def _toml(value: Any) -> str:
    """A value as TOML writes it; JSON's strings, numbers and lists are TOML's, too.

    TOML does not allow the character DEL as it is.
    """
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
