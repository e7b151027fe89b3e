"""The figures of a schema-2 manifest (releases 0.4 to 0.7) as an `Evaluation`."""

import math
from typing import Any

from nemt_dicom.model.evaluation import Evaluation, Scores

_METHOD = ("name", "library", "settings", "asked", "failed", "failures", "nemt_less", "nemt_over",
           "curves")  # fmt: skip


def from_schema_2(metrics: dict[str, Any]) -> Evaluation:
    """`metrics` of a schema-2 manifest; a figure that is not finite is left out.

    Raises `LookupError`, `TypeError` or pydantic's `ValidationError` for figures of another form.
    """
    content = dict(_finite(metrics))
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


def _finite(value: Any) -> Any:
    """The value without figures that hold NaN or infinity. In a list, None takes their place."""
    if isinstance(value, dict):
        items = {key: _finite(item) for key, item in value.items()}
        if "mean" in value and None in items.values():
            return None
        return {k: v for k, v in items.items() if v is not None or value[k] is None}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
