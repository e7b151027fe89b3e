"""A bundle with random weights that says it was trained on a data set, in no time."""

from pathlib import Path
from typing import Any

from nemt_dicom.model.bundle import save
from nemt_dicom.model.evaluation import CodeState
from nemt_dicom.model.manifest import (
    Description,
    Epoch,
    Parameters,
    SplitCounts,
    ThresholdRecord,
    Training,
    TrainingData,
)
from nemt_dicom.model.network import ExplainedNetwork
from tests.conftest import random_network
from trainer.data.cases import find_cases_to_evaluate
from trainer.seen_patients import record_of_seen
from trainer.training.places import Places
from trainer.training.recipe_file import preset

SIDE = 64
CODE = CodeState(version="0.8.0", commit="c0ffee" * 6, dirty=False, sources="5" * 64)
RECIPE = preset(
    **{
        "input.size": SIDE,
        "target_model.pretrained": False,
        "target_model.frozen_stages": 0,
        "target_model.teachers": 0,
        "explanation_module.response": "logit",
        "explanation_module.area_weight": 0.5,
        "explanation_module.fill": "black",
        "explanation_module.agreement": 0.0,
        "explanation_module.follows": False,
        "serving.gamma": 1.0,
        "run.bfloat16": False,
    }
).to_manifest()
THRESHOLDS = ThresholdRecord(
    sensitivity=0.9,
    specificity=0.6,
    images_with_segment=12,
    drawn_share_positives=0.8,
    drawn_share_negatives=0.2,
    by_mask_threshold={},
)


def training(**changes: Any) -> Training:
    """The record of a run, with changes."""
    values: dict[str, Any] = {
        "recipe": RECIPE,
        "target_model_file": None,
        "initial_weights_file": None,
        "parent": None,
        "thresholds": THRESHOLDS,
        "libraries": {},
        "parameters": Parameters(target_model=1234567, explanation_module=4321),
        "minutes": 20.7,
        "device": "CPU of the test, 1 thread",
        "processes": 1,
        "resumed": False,
        "code": CODE,
        "epochs": (Epoch(part="classifier", number=1, figures={"loss": 0.5}),),
        "weights": "float16",
        "half_precision_changes_answer": 0.0012,
    }
    return Training.model_validate({**values, **changes})


def training_data(**changes: Any) -> TrainingData:
    """The record of a data set, with changes."""
    values: dict[str, Any] = {
        "sources": ("RSNA",),
        "label": "pneumonia",
        "splits": {"RSNA test": SplitCounts(images=12, positives=6, patients=12)},
        "fingerprint": "f" * 64,
        "notes": (),
        "seen": None,
    }
    return TrainingData.model_validate({**values, **changes})


def description(**changes: Any) -> Description:
    """What a trained bundle says of itself, with changes."""
    values: dict[str, Any] = {
        "name": "pneumonia",
        "version": "0.8.0",
        "target": "pneumonia",
        "source_kinds": ("dicom",),
        "decision_threshold": 0.1,
        "mask_threshold": 0.5,
        "evidence_margin": -1.0,
        "fill": "black",
        "preprocessing": {"size": SIDE, "low_percentile": 0.0, "high_percentile": 100.0},
        "training": training(),
        "data": training_data(),
    }
    return Description.model_validate({**values, **changes})


def write_bundle(
    folder: Path, data: Path | None = None, network: ExplainedNetwork | None = None
) -> Path:
    """A bundle in `folder`. data: whose training patients it says that it has seen."""
    seen = None
    if data is not None:
        cases = find_cases_to_evaluate(
            [data],
            target="pneumonia",
            split="train",
            photographs=False,
            validation_share=0.15,
            trained_on=("RSNA",),
        ).cases
        places = Places(folders=(), out=folder, cache=folder)
        seen = record_of_seen(cases, places)
    content = description(data=training_data(seen=seen))
    save(folder, network or random_network(), content, "# No figures\n")
    return folder
