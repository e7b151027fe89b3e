"""What a model card says of a bundle, of its data and of where its parts come from."""

from dataclasses import replace
from typing import Any

import pytest

from nemt_dicom.model.manifest import Epoch, Parent
from tests.conftest import random_network
from tests.trainer.bundle_kit import CODE, RECIPE, description, training, training_data
from tests.trainer.report.evaluation_kit import evaluation
from trainer.metrics import features_in_step
from trainer.report.model_card import model_card
from trainer.training.recipe_file import changed, recorded_recipe

ARCHITECTURE = random_network().architecture
AUTHORS = (
    "Møller, Amiri, Igel, Wickstrøm, Jenssen, Keicher, Azampour, Navab, Ibragimov: *NEMt: Fast "
    "Targeted Explanations for Medical Image Models via Neural Explanation Masks*"
)


def card(**changes: Any) -> str:
    """The card of a bundle whose training record has changes."""
    return model_card(description(training=training(**changes)), ARCHITECTURE, evaluation())


def recipe(**changes: Any) -> dict[str, Any]:
    """The recipe of the kit with other values for these dotted names."""
    return {"recipe": changed(recorded_recipe(RECIPE), changes).to_manifest()}


def parent(**changes: Any) -> Parent:
    values: dict[str, Any] = {
        "name": "former", "version": "0.3.0", "digest": "d" * 64, "data": "f" * 64,
        "module_kept": False, "code": CODE, "device": "another CPU", "target_model_file": None,
        "initial_weights_file": None, "epochs": (),
    }  # fmt: skip
    return Parent(**{**values, **changes})


def test_the_facts_of_every_card() -> None:
    text = card()
    for fact in (
        "# pneumonia 0.8.0", "Not for clinical use", "not a medical device", AUTHORS,
        "1,234,567 parameters, frozen", "4,321 parameters", "light decoder of width 16",
        "smoothed over 21 x 21 pixels", "float16 changes the answer by at most 0.0012",
        "| RSNA test | 12 | 6 | 12 |", "RSNA Pneumonia Detection Challenge 2018",
        "The test split trained nothing and set no threshold.", "15% of the training patients",
        "95 % bootstrap interval over patients, 77 resamples", "| GradCAM++ |", "own less others",
        f"removes {features_in_step(64)} values of 64 x 64 in a step", "Dependence on the model",
        "**Stability**", "**Silence**", "`decision_threshold` 0.1: the lowest within 0.05",
        "12 images have a segment", "View is confounded".lower(), "no external validation",
        "Trained by `nemt-train` 0.8.0 at commit `c0ffee", "seed 1", "in 21 minutes.",
        "Only a fall of the response counts",
    ):  # fmt: skip
        assert fact in text, fact
    assert "{{" not in text
    assert "None" not in text
    assert "ImageNet" not in text


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(0.2, "less than a minute"), (1.2, "1 minute"), (20.7, "21 minutes")],
)
def test_how_long_it_took(minutes: float, words: str) -> None:
    assert f", in {words}.\n" in card(minutes=minutes)
    assert f", in {words} since it was resumed.\n" in card(minutes=minutes, resumed=True)


def test_a_bundle_without_figures_or_thresholds() -> None:
    text = model_card(description(training=training(thresholds=None)), ARCHITECTURE, None)
    assert "was not evaluated yet" in text
    assert "this bundle decides nothing and cannot be served" in text
    with pytest.raises(ValueError, match="no model card"):
        model_card(description(training=None), ARCHITECTURE, None)


def test_what_the_recipe_changes() -> None:
    module = "explanation_module"
    text = card(**recipe(**{f"{module}.agreement": 4.0}))
    squares = "agreement with single squares with weight 4"
    assert f"response `logit` to the power of 1, λ₁ = 0.5, {squares}." in text
    text = card(**recipe(**{f"{module}.objective": "literal", f"{module}.agreement": 4.0}))
    assert "equation (2) as printed" in text
    assert "agreement" not in text
    assert "mean answer of 3 others" in card(**recipe(**{"target_model.teachers": 3}))
    start = {"target_model.pretrained": True}
    public = recipe(**start, **{"target_model.frozen_stages": 2})
    assert "in the first 2 stages it changed the normalisation only" in card(**public)
    assert "Fine-tuning changed all of them." in card(**recipe(**start))
    assert "ImageNet" not in card(**public, initial_weights_file="a" * 64)
    represents = {f"{module}.objective": "nem-u", f"{module}.keep": "loss"}
    text = card(**recipe(**start, **represents))
    assert "NEM-U, λ₁ = 0.5, λ₂ = 0.25." in text
    assert "They are unchanged." in text


def test_how_a_mask_is_served_stands_in_the_architecture() -> None:
    served = replace(ARCHITECTURE, follows=True, gamma=0.5, full_from=3.0)
    text = model_card(description(), served, None)
    assert "told the log odds" in text
    assert "to the power of 0.5" in text
    assert "at log odds of 3." in text
    for words in ("told the log odds", "served to the power", "at log odds of"):
        assert words not in model_card(description(), ARCHITECTURE, None)


def test_a_recipe_of_an_earlier_release_names_the_switches_that_went() -> None:
    flat = {"target": "pneumonia", "size": 64, "pretrained": False, "sensitivity": 0.8}
    text = card(recipe=flat)
    assert "Settings that only earlier releases have: `sensitivity` 0.8." in text
    assert "sensitivity of at least 0.8 on" in text


def test_a_bundle_names_its_parent_and_what_that_trained() -> None:
    module = Epoch(part="explanation module", number=1, figures={})
    second = parent(name="second", module_kept=True, epochs=(module,))
    text = card(parent=second, target_model_file="b" * 64)
    assert "Target model and explanation module are from the bundle second 0.3.0" in text
    assert "Thresholds and figures were made by" in text
    assert "Its explanation module was trained by" in text
    assert "The test split trained nothing" in text
    classifier = Epoch(part="classifier", number=1, figures={})
    both = second.model_copy(update={"epochs": (classifier, module)})
    assert "Its network was trained by" in card(parent=both)
    taken = parent(epochs=(classifier,))
    assert "The target model is from the bundle former" in card(parent=taken)
    assert "Its target model was trained by" in card(parent=taken)
    assert "was trained by" not in card(parent=parent())
    for changes in ({"data": "0" * 64}, {"data": None}, {"target_model_file": "0" * 64}):
        told = card(parent=second.model_copy(update=changes), target_model_file="b" * 64)
        assert "whether the given network had seen it is not known here" in told
        assert "trained no explanation module" not in told  # it was kept
    told = card(target_model_file="b" * 64)
    assert "whether the given target model had seen it is not known here" in told
    assert "given as a file (SHA-256 `bbbbbbbbbbbbbbbb...`)" in told


def test_a_label_and_a_note_can_say_anything() -> None:
    hostile = "<script>x</script> | *a*"
    named = description(target=hostile, name=hostile, data=training_data(notes=(hostile,)))
    architecture = replace(ARCHITECTURE, outputs=(hostile,), target=hostile)
    text = model_card(named, architecture, evaluation())
    assert f"`{hostile}`" in text  # in a code span nothing is obeyed
    assert "<script>" not in text.replace(f"`{hostile}`", "")
    assert "- \\<script\\>x\\</script\\> \\| \\*a\\*.\n" in text
