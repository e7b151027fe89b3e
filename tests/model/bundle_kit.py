"""What the tests of bundles share: figures, and a bundle in the form of releases 0.2 to 0.7."""

import hashlib
import json
from pathlib import Path
from typing import Any

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import (
    CodeState,
    Evaluation,
    Figure,
    MaskArea,
    MethodResult,
    Scope,
    Scores,
    Seconds,
)

CODE = {"version": "0.5.0", "commit": "unknown", "dirty": None, "sources": "0" * 64}


def evaluation(faithfulness: float = 0.5) -> Evaluation:
    """The fewest figures that an evaluation has, and one that a test may change."""
    figure = Figure(mean=faithfulness, lo=0.1, hi=0.9, n=8)
    module = MethodResult(
        name="NEMt",
        library="",
        settings="",
        asked=8,
        failed=0,
        failures=(),
        scores=Scores(faithfulness=figure),
        curves={"deletion_black": (1.0, 0.0)},
    )
    scope = Scope(
        split="test",
        images=8,
        positives=4,
        with_ground_truth=0,
        unreadable=0,
        patients=8,
        sources=("CSV",),
        fingerprint="0" * 64,
        notes=(),
        thorough=False,
        device="cpu",
        code=CodeState(**CODE),
    )
    return Evaluation(
        scope=scope,
        checks=(),
        metrics={},
        classifier=Seconds(single=figure),
        mask_area=MaskArea(),
        methods={"nemt": module},
    )


def _figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "lo": 0.1, "hi": 0.9, "n": 8}


METRICS: dict[str, Any] = {
    "evaluated": {
        "split": "test", "images": 8, "positives": 4, "with_ground_truth": 0, "unreadable": 0,
        "patients": 8, "sources": ["CSV"], "fingerprint": "0" * 64, "notes": [],
        "thorough": True, "device": "cpu", "code": CODE,
    },
    "checks": [{"question": "does it hold still?", "passed": True, "figure": "0.6"}],
    "metrics": {"faithfulness": "in words"},
    "classifier": {"seconds": _figure(0.2), "seconds_in_batch": _figure(0.1)},
    "mask_area": {"positives": _figure(0.3)},
    "auc": {"all": _figure(0.8), "CSV": _figure(float("nan"))},
    "methods": {
        "nemt": {
            "name": "NEMt", "library": "", "settings": "", "asked": 8, "failed": 0,
            "failures": [], "faithfulness": _figure(0.5), "seconds": _figure(0.2),
        }
    },
    "randomisation": {
        "layers": ["head"],
        "nemt": {
            "name": "NEMt", "cascading": [0.1, None], "independent": [float("nan")],
            "fully_randomised": _figure(0.4), "survives": False,
        },
    },
}  # fmt: skip
"""Figures as release 0.4 to 0.7 wrote them, two of them not finite."""


def _taken(digest: str, before: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    taken = {
        "name": "pneumonia", "version": "0.3.0", "digest": digest * 64, "data": "d" * 64,
        "module_kept": True, "code": CODE, "device": "cpu", "target_model_file": "1" * 64,
        "initial_weights_file": None, "epochs": [["classifier", 1, {"auc": float("nan")}]],
    }  # fmt: skip
    return taken | changes | ({"target_model_bundle": before} if before else {})


TRAINING: dict[str, Any] = {
    "recipe": {"objective": "nemt", "seed": 1},
    "target_model_file": "1" * 64,
    "target_model_bundle": _taken("a", _taken("b", None, target_model_file=None)),
    "initial_weights_file": None,
    "thresholds": {},
    "libraries": {"torch": "2.9"},
    "parameters": {"target_model": 10, "explanation_module": 1},
    "minutes": 0.5,
    "device": "cpu",
    "processes": 1,
    "code": CODE,
    "epochs": [["explanation module", 1, {"loss": 0.5, "score": float("inf")}]],
    "weights": "float16",
    "half_precision_changes_answer": 0.001,
}
DATA: dict[str, Any] = {
    "sources": ["CSV"],
    "label": "pneumonia",
    "splits": {"CSV test": {"images": 8, "positives": 4, "patients": 8}},
    "fingerprint": "d" * 64,
    "notes": [],
}


def as_schema_2(bundle: Bundle, folder: Path, **changes: Any) -> Path:
    """A copy of a bundle as release 0.7 would have written it."""
    folder.mkdir()
    sha256 = {}
    for name in ("model.safetensors", "golden.dcm", "golden.safetensors", "MODEL_CARD.md"):
        raw = (bundle.folder / name).read_bytes()
        (folder / name).write_bytes(raw)
        sha256[name] = hashlib.sha256(raw).hexdigest()
    content = bundle.manifest.model_dump(mode="json", exclude={"sha256"})
    content |= {"schema_version": 2, "training": TRAINING, "data": DATA, "metrics": METRICS}
    content |= changes

    def written(digest: str) -> str:
        named = {**content, "sha256": {**sha256, "manifest.json": digest}}
        return json.dumps(named, indent=2, sort_keys=True) + "\n"

    digest = hashlib.sha256(written("").encode()).hexdigest()
    (folder / "manifest.json").write_text(written(digest), encoding="utf-8")
    return folder


def to_schema_2(evaluation: Evaluation) -> dict[str, Any]:
    """`metrics` of a schema-2 manifest: the inverse of `from_schema_2`."""
    content = evaluation.model_dump(mode="json", exclude_defaults=True)
    content["evaluated"] = content.pop("scope")
    content["classifier"] = _flat_seconds(content["classifier"])
    for row in content["methods"].values():
        row.update(row.pop("scores") | _flat_seconds(row.pop("seconds", {})))
    if "randomisation" in content:
        content["randomisation"] |= content["randomisation"].pop("methods")
    return content


def _flat_seconds(seconds: dict[str, Any]) -> dict[str, Any]:
    names = {"single": "seconds", "batch": "seconds_in_batch"}
    return {names[name]: value for name, value in seconds.items()}
