"""The figures of a schema-2 manifest (releases 0.4 to 0.7) as an `Evaluation`."""

from typing import Any

from nemt_dicom.model.evaluation import Evaluation, Scores

_METHOD = ("name", "library", "settings", "asked", "failed", "failures", "nemt_less", "nemt_over",
           "curves")  # fmt: skip


def from_schema_2(metrics: dict[str, Any]) -> Evaluation:
    """`metrics` of a schema-2 manifest. Raises pydantic's `ValidationError` if it is damaged."""
    content = dict(metrics)
    content["scope"] = content.pop("evaluated")
    content["classifier"] = _seconds(content["classifier"])
    content["methods"] = {key: _method(row) for key, row in content["methods"].items()}
    if "randomisation" in content:
        methods = dict(content["randomisation"])
        content["randomisation"] = {"layers": methods.pop("layers"), "methods": methods}
    content.pop("label_randomisation", None)  # is not measured any more
    content.pop("verdict", None)
    return Evaluation.model_validate(content)


def _method(row: dict[str, Any]) -> dict[str, Any]:
    scores = {name: value for name, value in row.items() if name in Scores.model_fields}
    kept = {name: value for name, value in row.items() if name in _METHOD}
    seconds = {"seconds": _seconds(row)} if "seconds" in row else {}
    return {**kept, **seconds, "scores": scores}


def _seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {"single": row["seconds"], "batch": row.get("seconds_in_batch")}
