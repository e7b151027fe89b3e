"""Loads the settings: built-in defaults < `nemt-dicom.toml` < `NEMT_SECTION__KEY` < command line.

The models are in settings.py; import them from here. An unknown section, an unknown key or a bad
value raises `ConfigError`, which names the key, the value and what is allowed.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nemt_dicom.errors import ConfigError
from nemt_dicom.settings import (
    DeliverySettings,
    DicomDestination,
    ExplanationSettings,
    FolderDestination,
    InputSettings,
    ListenerSettings,
    OutputSettings,
    PlaneGeometry,
    Section,
    Settings,
    default_state_dir,
)

__all__ = [
    "DeliverySettings",
    "DicomDestination",
    "ExplanationSettings",
    "FolderDestination",
    "InputSettings",
    "ListenerSettings",
    "OutputSettings",
    "PlaneGeometry",
    "Settings",
    "default_state_dir",
    "load_settings",
]

ENV_PREFIX = "NEMT_"
ENV_IGNORED = frozenset({"NEMT_TEST_DATA", "NEMT_CACHE"})
"""Names with this prefix that are not settings: the tests and the trainer read them."""
KINDS: dict[str, type[Section]] = {"dicom": DicomDestination, "folder": FolderDestination}
"""The model of each kind of destination."""


def load_settings(
    file: Path | None = None,
    env: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Reads, merges and validates the configuration.

    file: a TOML file; None for none.
    env: environment variables. They win over the file.
    overrides: values of the command line, by section and key. They win over everything.

    Raises `ConfigError` with one line for each problem.
    """
    merged: dict[str, Any] = _read_toml(file) if file is not None else {}
    problems = _merge_env(merged, env)
    used = dict(env)
    for section, values in (overrides or {}).items():
        table = merged.setdefault(section, {})
        if isinstance(table, dict):  # anything else in the file is refused below
            table.update(values)
        for key in values:
            used.pop(f"{ENV_PREFIX}{section}__{key}".upper(), None)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        problems += [_describe(problem, used) for problem in error.errors()]
    if problems:
        source = f"{file}: " if file is not None else ""
        raise ConfigError("\n".join(source + line for line in problems))
    return settings


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from error


def _merge_env(merged: dict[str, Any], env: Mapping[str, str]) -> list[str]:
    """Writes each NEMT_SECTION__KEY into `merged`. Returns a line for each name that is unknown."""
    problems = []
    for name in sorted(env):
        if not name.startswith(ENV_PREFIX) or name in ENV_IGNORED:
            continue
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if section == "destinations" and not key:
            try:
                merged["destinations"] = json.loads(env[name])
            except json.JSONDecodeError as error:
                problems.append(f"{name}: not valid JSON ({error}); allowed: a list of tables")
            continue
        model = Settings.model_fields.get(section)
        if model is None or section == "destinations":
            shown = f"{name} = {env[name]!r}"
            problems.append(f"{shown}: no such section {section!r}; allowed: {_sections()}")
        elif key not in _section_model(section).model_fields:
            allowed = _fields(section)
            shown = f"{name} = {env[name]!r}"
            problems.append(f"{shown}: no such key {key!r}; allowed in [{section}]: {allowed}")
        else:
            value: Any = env[name]
            if _is_list(section, key):
                value = [part.strip() for part in value.split(",") if part.strip()]
            table = merged.setdefault(section, {})
            if isinstance(table, dict):
                table[key] = value
    return problems


def _sections() -> str:
    return ", ".join(Settings.model_fields)


def _section_model(section: str) -> type[BaseModel]:
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


def _fields(section: str) -> str:
    return ", ".join(_section_model(section).model_fields)


def _is_list(section: str, key: str) -> bool:
    default = _section_model(section).model_fields[key].default
    return isinstance(default, tuple)


def _describe(problem: Any, env: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors: the key, its value and what is allowed.

    env: the variables that set a value. If one set this value, its name stands for the key.
    """
    location = problem["loc"]
    # Pydantic puts the kind of a destination into the location, as if it were a key.
    path = [
        str(part)
        for depth, part in enumerate(location)
        if not (location[0] == "destinations" and depth == 2 and part in KINDS)
    ]
    name = ".".join(path) or "configuration"
    env_name = ENV_PREFIX + "__".join(path[:2]).upper()
    name = env_name if env_name in env else name
    if message := _clearer_message(problem["type"], name, path):
        return message
    value = problem.get("input")
    shown = f"{name} = {value!r}" if isinstance(value, str | int | float | bool) else name
    if problem["type"] != "extra_forbidden":
        return f"{shown}: {problem['msg'].removeprefix('Value error, ')}"
    if len(path) == 1:
        return f"{shown}: no such section; allowed: {_sections()}"
    if path[0] != "destinations":
        return f"{shown}: no such key; allowed in [{path[0]}]: {_fields(path[0])}"
    kind = next(part for part in location if part in KINDS)
    return f"{shown}: no such key; allowed: {', '.join(KINDS[kind].model_fields)}"


def _clearer_message(error_type: str, name: str, path: list[str]) -> str:
    """A message that is clearer than pydantic's; empty if pydantic's message is clear."""
    match error_type:
        case "missing":
            return f"{name}: is required"
        case "union_tag_not_found":
            return f"{name}.kind: is required; allowed: dicom, folder"
        case "tuple_type":
            example = "[[destinations]]" if name == "destinations" else f'{path[-1]} = ["..."]'
            return f"{name}: must be a list: {example}"
    return ""
