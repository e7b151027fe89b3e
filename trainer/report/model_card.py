"""The model card that every bundle carries, written from the run's own figures."""

from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.manifest import Description, Parent, Training, TrainingData
from nemt_dicom.model.network import Architecture

from ..evaluation.model_dependence import SURVIVES
from ..evaluation.scores import INTERVAL
from ..metrics import features_in_step
from ..training.classifier import CLASSIFIER
from ..training.recipe_file import left_out, recorded_recipe
from . import tables
from .render import render

FORMER_INTERVAL = "95 % bootstrap interval over patients (2000 resamples)"
"""How the intervals of every release up to 0.7 were made; their figures do not say it."""


def model_card(
    description: Description, architecture: Architecture, evaluation: Evaluation | None
) -> str:
    """MODEL_CARD.md of a bundle. evaluation: None if nothing was measured yet.

    Raises `ValueError` if the description has no training: such a bundle was not trained here.
    """
    training, data = description.training, description.data
    if training is None or data is None:
        raise ValueError("a bundle without a record of its training has no model card")
    recipe = recorded_recipe(training.recipe)
    return render(
        "model_card",
        d=description,
        a=architecture,
        e=evaluation,
        t=training,
        data=data,
        recipe=recipe,
        former=left_out(training.recipe),
        thresholds=training.thresholds,
        parent=training.parent,
        part=_part_of(training.parent),
        seen=_what_may_have_seen_the_test_split(training, data),
        public_start=recipe.target_model.pretrained and _starts_without_a_file(training),
        kind="photograph" if "photograph" in description.source_kinds else "radiograph",
        duration=_duration(training.minutes),
        interval=evaluation.metrics.get(INTERVAL, FORMER_INTERVAL) if evaluation else "",
        values_in_step=features_in_step(recipe.input.size),
        survives=SURVIVES,
        tables=tables,
    )


def _part_of(parent: Parent | None) -> str | None:
    """The part of the bundle that the parent trained; None if its epochs do not show any."""
    if parent is None or parent.code is None or not parent.epochs:
        return None
    if not parent.module_kept:
        return "target model"
    with_target_model = any(epoch.part == CLASSIFIER for epoch in parent.epochs)
    return "network" if with_target_model else "explanation module"


def _what_may_have_seen_the_test_split(training: Training, data: TrainingData) -> str:
    """What may have seen the test split: "nothing", "target model" or "network"."""
    parent = training.parent
    from_a_file = (parent or training).target_model_file
    if not (from_a_file or (parent and parent.data != data.fingerprint)):
        return "nothing"
    return "network" if parent and parent.module_kept else "target model"


def _starts_without_a_file(training: Training) -> bool:
    start = training.parent or training
    return start.target_model_file is None and start.initial_weights_file is None


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"{minutes:.0f} minute{'s' * (round(minutes) > 1)}"
