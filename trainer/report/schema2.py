"""Typed values from and to schema 2 of a bundle's manifest, until bundles are written typed."""

from typing import Any

from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.manifest import Description

_EMPTY = {"code": None, "device": None, "target_model_file": None, "initial_weights_file": None}


def description_of(content: dict[str, Any]) -> Description:
    """The description in the content of a schema-2 manifest."""
    names = set(Description.model_fields)
    values = {name: value for name, value in content.items() if name in names}
    training, data = values["training"], values["data"]
    values["training"] = {
        **{k: v for k, v in training.items() if k != "target_model_bundle"},
        "parent": _parent(training.get("target_model_bundle")),
        "thresholds": training["thresholds"] or None,
        "epochs": _epochs(training["epochs"]),
        "resumed": training.get("resumed", False),
        "processes": training.get("processes", 1),
    }
    values["data"] = {**data, "seen": data.get("seen"), "notes": data.get("notes", ())}
    return Description.model_validate(values)


def _parent(content: dict[str, Any] | None) -> dict[str, Any] | None:
    """The newest parent; of the ones before it the first one's files, and whether data differ."""
    if content is None:
        return None
    line = [content]
    while line[-1].get("target_model_bundle"):
        line.append(line[-1]["target_model_bundle"])
    known = {k: v for k, v in content.items() if k != "target_model_bundle"}
    files = {name: line[-1].get(name) for name in ("target_model_file", "initial_weights_file")}
    data = {parent["data"] for parent in line}
    further = {"epochs": _epochs(content["epochs"]), "data": data.pop() if len(data) == 1 else None}
    return {**_EMPTY, **known, **files, **further}


def _epochs(rows: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(("part", "number", "figures"), row, strict=True)) for row in rows]


def to_schema_2(evaluation: Evaluation) -> dict[str, Any]:
    """`metrics` of a schema-2 manifest; the inverse of `from_schema_2`."""
    content = evaluation.for_bundle().model_dump(mode="json", exclude_none=True)
    content["evaluated"] = content.pop("scope")
    content["classifier"] = _seconds(content["classifier"])
    content["methods"] = {key: _method(row) for key, row in content["methods"].items()}
    if "randomisation" in content:
        tests = content["randomisation"]
        content["randomisation"] = {"layers": tests["layers"], **tests["methods"]}
        for row in tests["methods"].values():
            row.setdefault("fully_randomised", None)
    return content


def _method(row: dict[str, Any]) -> dict[str, Any]:
    seconds = _seconds(row.pop("seconds")) if "seconds" in row else {}
    return {**row.pop("scores"), **row, **seconds}


def _seconds(row: dict[str, Any]) -> dict[str, Any]:
    batch = {"seconds_in_batch": row["batch"]} if "batch" in row else {}
    return {"seconds": row["single"], **batch}
