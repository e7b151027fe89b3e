"""A bundle of schema 2 (releases 0.2 to 0.7) becomes one of schema 3, in its folder.

The networks, the thresholds and the golden image stay as they are. The figures move from the
manifest to `evaluation.json`. Of the chain of parents only the latest is kept.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemt_dicom.errors import BundleError
from nemt_dicom.model.bundle import Bundle, evaluation_bytes, replace_files
from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.evaluation_schema2 import from_schema_2
from nemt_dicom.model.folder import parse_any, read, require, require_signature, settle
from nemt_dicom.model.manifest import EVALUATION, FILES, MANIFEST, SCHEMA_VERSION

_KEPT = (
    "name", "version", "target", "source_kinds", "decision_threshold", "mask_threshold",
    "evidence_margin", "fill", "preprocessing", "architecture", "sha256",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """A bundle of the current schema.

    changed: whether it was of schema 2 before.
    figures_lost: whether it had figures of a form that cannot be converted.
    """

    bundle: Bundle
    changed: bool
    figures_lost: bool = False


def upgrade(folder: Path) -> Upgraded:
    """Converts a bundle of schema 2 in its folder; one of schema 3 stays as it is.

    A damaged bundle is refused before anything is written. A kill leaves the old bundle or the new
    one. Raises `BundleError`.
    """
    where = folder / MANIFEST
    raw = read(where)
    content = parse_any(where, raw)
    try:
        if content.get("schema_version") != 2:
            bundle = Bundle.load(folder)
            settle(folder)
            return Upgraded(bundle=bundle, changed=False)
        require_signature(where, raw, content, allow_nan=True)
        for name in FILES:
            require(folder, name, content["sha256"].get(name))
        evaluation, lost = _evaluation(content["metrics"])
        figures = {} if evaluation is None else {EVALUATION: evaluation_bytes(evaluation)}
        bundle = replace_files(folder, _manifest(content), figures)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise BundleError(
            f"{where}: is not of the form of schema 2 ({type(error).__name__}: {error})"
        ) from error
    return Upgraded(bundle=bundle, changed=True, figures_lost=lost)


def _evaluation(metrics: dict[str, Any]) -> tuple[Evaluation | None, bool]:
    """The figures, and whether figures were lost because they cannot be converted."""
    try:
        return (from_schema_2(metrics), False) if metrics else (None, False)
    except (AttributeError, LookupError, TypeError, ValidationError):
        return None, True


def _manifest(content: dict[str, Any]) -> dict[str, Any]:
    training, data = content["training"], content["data"]
    return {
        "schema_version": SCHEMA_VERSION,
        **{key: content[key] for key in _KEPT},
        "training": _training(training) if training else None,
        "data": _data(data, content["target"]) if data else None,
    }


def _training(old: dict[str, Any]) -> dict[str, Any]:
    """A key that a release after 0.2 added may be missing: it gets the value of earlier runs."""
    change = old.get("half_precision_changes_answer", old.get("half_precision_changes_p", 0.0))
    return {
        "recipe": _finite(old["recipe"]),
        "target_model_file": old.get("target_model_file"),
        "initial_weights_file": old.get("initial_weights_file"),
        "parent": _parent(old.get("target_model_bundle")),
        "thresholds": old["thresholds"] or None,
        "libraries": old["libraries"],
        "parameters": old["parameters"],
        "minutes": old["minutes"],
        "device": old["device"],
        "processes": old.get("processes", 1),
        "resumed": old.get("resumed", False),
        "code": old["code"],
        "epochs": _epochs(old["epochs"]),
        "weights": old.get("weights", "float16"),
        "half_precision_changes_answer": change if math.isfinite(change) else None,
    }


def _parent(latest: dict[str, Any] | None) -> dict[str, Any] | None:
    """The latest parent, with the weight files of the first parent in the chain.

    data: None if their data were different.
    """
    if not latest:
        return None
    chain = [latest]
    while before := chain[-1].get("target_model_bundle"):
        chain.append(before)
    as_they_are = ("name", "version", "digest", "module_kept", "code", "device")
    first = chain[-1]
    return {
        **{key: latest[key] for key in as_they_are},
        "data": latest["data"] if len({bundle["data"] for bundle in chain}) == 1 else None,
        "target_model_file": first["target_model_file"],
        "initial_weights_file": first["initial_weights_file"],
        "epochs": _epochs(latest["epochs"]),
    }


def _epochs(triples: list[Any]) -> list[dict[str, Any]]:
    return [
        {"part": part, "number": number, "figures": _finite(figures)}
        for part, number, figures in triples
    ]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The values without NaN and infinity, which have no form in JSON."""
    return {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def _data(old: dict[str, Any], target: str) -> dict[str, Any]:
    return {
        "sources": old["sources"],
        "label": old.get("label", target),
        "splits": old["splits"],
        "fingerprint": old["fingerprint"],
        "notes": old.get("notes", []),
        "seen": old.get("seen"),
    }
