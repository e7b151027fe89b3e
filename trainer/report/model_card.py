"""The model card that every bundle carries, written from the run's own figures."""

from typing import Any

from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.manifest import Description, Parent, Training, TrainingData
from nemt_dicom.model.network import Architecture

from ..evaluation.model_dependence import SURVIVES
from ..evaluation.scores import INTERVAL
from ..metrics import features_in_step
from ..training.classifier import CLASSIFIER
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
    side = int(training.recipe["size"])
    recipe = _Defaults(training.recipe)
    return render(
        "model_card",
        d=description,
        a=architecture,
        e=evaluation,
        t=training,
        data=data,
        recipe=recipe,
        thresholds=training.thresholds,
        parent=training.parent,
        part_of_parent=_part_of_parent(training.parent),
        seen=_what_may_have_seen_the_test_split(training, data),
        own_start=_starts_from_public_weights(training),
        further_terms=_further_terms(recipe),
        kind="photograph" if "photograph" in description.source_kinds else "radiograph",
        duration=_duration(training.minutes),
        interval=evaluation.metrics.get(INTERVAL, FORMER_INTERVAL) if evaluation else "",
        values_in_step=features_in_step(side),
        survives=SURVIVES,
        tables=tables,
    )


class _Defaults:
    """A recipe by attribute; a field that its release did not know is None."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._recipe = recipe

    def __getattr__(self, name: str) -> Any:
        return self._recipe.get(name)


def _part_of_parent(parent: Parent | None) -> str:
    """Which part of the bundle its parent trained, as far as the parent's epochs show it."""
    if parent is None or parent.code is None or not parent.epochs:
        return ""
    if not parent.module_kept:
        return "target model"
    whole = any(epoch.part == CLASSIFIER for epoch in parent.epochs)
    return "network" if whole else "explanation module"


def _what_may_have_seen_the_test_split(training: Training, data: TrainingData) -> str:
    """What may have seen the test split: "nothing", "target model" or "network"."""
    parent = training.parent
    from_file = (parent or training).target_model_file
    if not (from_file or (parent and parent.data != data.fingerprint)):
        return "nothing"
    return "network" if parent and parent.module_kept else "target model"


def _starts_from_public_weights(training: Training) -> bool:
    first = training.parent or training
    is_own = first.target_model_file is None and first.initial_weights_file is None
    return bool(training.recipe["pretrained"]) and is_own


def _further_terms(recipe: _Defaults) -> str:
    """The terms of the loss that the paper does not have."""
    if recipe.objective == "literal":
        return ""
    terms = (
        ("preservation", recipe.preservation),
        ("agreement with single squares", recipe.agreement),
    )
    return "".join(f", {text} with weight {weight:g}" for text, weight in terms if weight)


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "less than a minute"
    return f"{minutes:.0f} minute{'s' * (round(minutes) > 1)}"
