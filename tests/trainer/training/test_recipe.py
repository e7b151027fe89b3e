"""A recipe: what its fields mean and allow, without torch."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import Fill as FillOfABundle
from tests.conftest import ROOT
from trainer.training.recipe import Fill, Recipe
from trainer.training.recipe_file import names, preset, sections


@pytest.mark.parametrize("module", ["recipe", "recipe_file"])
def test_a_recipe_needs_no_torch(module: str) -> None:
    program = f"import sys, trainer.training.{module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", names())
def test_every_value_says_in_one_line_what_it_means(name: str) -> None:
    section, _, field = name.partition(".")
    model: type[BaseModel] = sections()[section]
    text = model.model_fields[field].description or ""
    assert text.split("\n")[0].endswith(".")


def test_a_recipe_is_frozen_and_its_values_have_no_default() -> None:
    with pytest.raises(ValueError, match="frozen"):
        preset().run.batch = 3
    for model in sections().values():
        assert all(field.is_required() for field in model.model_fields.values())


def test_a_single_label_in_place_of_a_list_is_told_how_to_write_it() -> None:
    with pytest.raises(TrainingError, match=r'auxiliary = "all": should be a list, such as \["'):
        preset(**{"target_model.auxiliary": "all"})
    assert preset(**{"target_model.auxiliary": ["all"]}).target_model.auxiliary == ("all",)


def test_the_fills_are_those_of_a_bundle() -> None:
    assert Fill == FillOfABundle


def test_what_is_served_of_mixed_fills_is_blur() -> None:
    assert preset().served_fill == "blur"
    assert preset("paper").served_fill == "black"


def test_preprocessing_is_the_inputs() -> None:
    assert preset("paper").preprocessing.to_manifest() == {
        "size": 224, "low_percentile": 0.0, "high_percentile": 100.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_model.label_smoothing", 0.5),
        ("target_model.learning_rate", -1.0),
        ("target_model.learning_rate", 0.0),
        ("target_model.learning_rate", float("nan")),
        ("target_model.weight_decay", -0.1),
        ("target_model.average", 1.0),
        ("target_model.teachers", -1),
        ("target_model.teachers", 1.5),
        ("target_model.frozen_stages", -1),
        ("target_model.pretrained", 1),
        ("target_model.backbone", ""),
        ("explanation_module.area_weight", 0.0),
        ("explanation_module.area_warmup", 1.1),
        ("explanation_module.agreement", -1.0),
        ("explanation_module.exponent", 0.0),
        ("explanation_module.epochs", 0),
        ("explanation_module.decoder_width", 0),
        ("explanation_module.decoder_width", 12),
        ("explanation_module.keep", "best"),
        ("explanation_module.neighbourhood", 225),
        ("serving.full_from", float("inf")),
        ("serving.gamma", 0.0),
        ("input.size", 16),
        ("input.size", 4096),
        ("input.low_percentile", 100.0),
        ("data.validation_share", 0.0),
        ("data.target", ""),
        ("run.batch", 0),
        ("run.batch", True),
        ("run.seed", -1),
        ("run.seed", 2**63),
        ("run.threads", 1_000_000),
        ("run.device", "tpu"),
        ("run.bfloat16", "yes"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(name: str, value: Any) -> None:
    with pytest.raises(TrainingError, match=name.partition(".")[0]) as raised:
        preset(**{name: value})
    assert name.partition(".")[2] in str(raised.value)


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"run\.bath = 3: Extra inputs"):
        preset(**{"run.bath": 3})


def test_a_representation_has_nothing_to_be_faithful_to() -> None:
    with pytest.raises(TrainingError, match="start from --recipe nem-u"):
        preset(**{"explanation_module.objective": "nem-u"})
    assert isinstance(preset("nem-u"), Recipe)
