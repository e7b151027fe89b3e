"""Recipes as files: the presets, precedence, what is written, and recipes of former bundles."""

import json
from pathlib import Path
from typing import Any

import pytest

from nemt_dicom.errors import TrainingError
from tests.conftest import ROOT
from trainer.training.recipe_file import (
    FOLDER,
    LEFT_OUT,
    PRESETS,
    RENAMED,
    changed,
    left_out,
    names,
    preset,
    read_assignment,
    read_values,
    recorded_recipe,
    validated,
    written,
)


def test_every_preset_is_a_file_and_every_file_a_preset() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(PRESETS)
    for name in PRESETS:
        assert preset(name).data.target == "pneumonia"


def test_the_default_recipe_as_it_ships_is_as_it_is_written() -> None:
    text = (FOLDER / "default.toml").read_text("utf-8")
    head, _, rest = text.partition("\n\n\n")
    assert all(line.startswith("#") for line in head.splitlines())
    assert rest == written(read_values("default"))


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = preset("paper")
    module = recipe.explanation_module
    assert (recipe.target_model.backbone, recipe.input.size) == ("resnet50", 224)
    assert (module.decoder, module.area_weight, module.neighbourhood) == ("unet", 0.5, 21)
    assert (module.exponent, module.fill, module.follows) == (2.0, "black", False)
    assert (recipe.target_model.epochs, module.epochs, recipe.run.batch) == (10, 5, 32)
    module = preset("paper-nem-u").explanation_module
    assert (module.area_weight, module.binary_weight, module.neighbourhood) == (0.125, 0.25, 1)
    assert (module.epochs, module.keep) == (5, "last")


def test_a_representation_is_trained_until_its_loss_settles() -> None:
    module = preset("nem-u").explanation_module
    assert (module.objective, module.epochs, module.keep) == ("nem-u", 12, "loss")
    assert preset("nem-u").target_model.teachers == 0


def test_a_file_says_what_differs_from_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "paper"\n[run]\nbatch = 16\n', encoding="utf-8")
    assert preset(str(path)) == changed(preset("paper"), {"run.batch": 16})
    path.write_text("[run]\nbatch = 16\n", encoding="utf-8")
    assert preset(str(path)) == changed(preset("default"), {"run.batch": 16})


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_that_is_written_is_read_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = preset(name, **{"target_model.auxiliary": ("a", 'b"ö'), "run.bfloat16": True})
    path = tmp_path / "recipe.toml"
    path.write_text(written(recipe.model_dump()), encoding="utf-8")
    assert validated(read_values(str(path))) == recipe


def test_a_written_recipe_teaches() -> None:
    text = written(preset().model_dump())
    assert "# λ₁, price of a mask of the whole image, above 0 (paper: 1/2). Higher: smaller" in text
    assert max(map(len, text.splitlines())) <= 100
    assert '# target = "..."' in written(read_values("default"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[run]\nbath = 3",
            r"no 'run\.bath'; did you mean run\.batch\? There are: \[data\] target",
        ),
        ("[rum]\nbatch = 3", r"no 'rum\.batch'; did you mean run\.batch\?"),
        ("batch = 3", r"no 'batch'; did you mean run\.batch\?"),
        ('preset = "mine"', "preset = 'mine': allowed: default, paper"),
        ("[run", "is not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TrainingError, match=message) as raised:
        read_values(str(path))
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(TrainingError, match="no such file, and no preset; presets: default, paper"):
        read_values("papers")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("run.batch=16", 16),
        ("target_model.learning_rate = 1e-4", 1e-4),
        ("target_model.pretrained=false", False),
        ('target_model.auxiliary=["edema"]', ["edema"]),
        ("target_model.backbone=resnet50", "resnet50"),
        ('target_model.backbone="resnet50"', "resnet50"),
        ("target_model.backbone=a=b", "a=b"),
        ("run.batch=1\nseed = 2", "1\nseed = 2"),
    ],
)
def test_a_value_of_the_command_line_is_toml_or_a_word(text: str, value: Any) -> None:
    assert read_assignment(text) == (text.partition("=")[0].strip(), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run.batch", "write --set name=value"),
        ("target_model.epoch=3", r"did you mean target_model\.epochs"),
        ("area_weight=3", r"did you mean explanation_module\.area_weight\?"),
        ("mask_epochs=3", r"did you mean explanation_module\.epochs\?"),
        ("zzz=3", r"no 'zzz'\. There are: \[data\] target, validation_share; \[input\] size"),
    ],
)
def test_an_unknown_name_is_answered_with_near_names_and_all(text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        read_assignment(text)


def test_a_bad_value_says_what_is_allowed() -> None:
    with pytest.raises(
        TrainingError, match=r'keep = "best": should be .faithful., .last. or .loss'
    ):
        preset(**{"explanation_module.keep": "best"})


def test_every_former_name_has_a_name_now() -> None:
    assert sorted(RENAMED.values()) == sorted(names())
    assert not LEFT_OUT.keys() & RENAMED.keys()


def test_the_recipe_of_the_bundle_that_ships_can_be_read() -> None:
    path = ROOT / "nemt_dicom" / "pneumonia" / "manifest.json"
    recorded = json.loads(path.read_text("utf-8"))["training"]["recipe"]
    recipe = recorded_recipe(recorded)
    assert recipe.target_model.backbone == "tf_efficientnet_lite0"
    if "explanation_module" not in recorded:  # flat names of before 0.8.0
        for former, now in RENAMED.items():
            if recorded.get(former) is not None:
                value = recorded[former]
                expected = tuple(value) if isinstance(value, list) else value
                assert dict(recipe.values())[now] == expected, former
        assert left_out(recorded) == {}


def test_a_bundle_that_does_not_speak_of_teachers_had_none() -> None:
    assert recorded_recipe({"target": "a"}).target_model.teachers == 0
    assert recorded_recipe({"target": "a"}).explanation_module.keep == "last"
    assert recorded_recipe({"target": "a", "teachers": 3}).target_model.teachers == 3


def test_a_recorded_recipe_is_the_recipe() -> None:
    recipe = preset("paper", **{"run.bfloat16": False})
    assert recorded_recipe(json.loads(json.dumps(recipe.to_manifest()))) == recipe


def test_switches_that_were_used_and_are_no_more_are_told() -> None:
    assert left_out({"sensitivity": 0.9, "preservation": 0.0, "accumulate": 2}) == {
        "sensitivity": 0.9, "accumulate": 2,
    }  # fmt: skip
    assert left_out(preset().to_manifest()) == {}


def test_any_label_that_is_written_can_be_read(tmp_path: Path) -> None:
    label = 'a\x7fb\t"c" \\ é\n'
    path = tmp_path / "recipe.toml"
    path.write_text(written(preset(**{"data.target": label}).model_dump()), encoding="utf-8")
    assert validated(read_values(str(path))).data.target == label


@pytest.mark.parametrize(
    ("text", "message"),
    [("data = 3\n", "data is a section: write \\[data\\]"), ("[daat]\n", "data")],
)
def test_what_is_no_section_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrainingError, match=message):
        read_values(str(path))
