"""The command line of nemt-train: what it is told, and what it refuses before any work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.bundle import Bundle
from tests.trainer.synthetic_sets import write_nih
from tests.trainer.training_kit import quick
from trainer import prepare
from trainer.cli import main, read_arguments
from trainer.training.precision import has_bfloat16
from trainer.training.recipe_file import preset

DATA = ["--target", "pneumonia", "--data", "data", "--out", "out"]


def test_only_the_target_has_to_be_named() -> None:
    recipe, places, task = read_arguments(["--target", "Pleural_Thickening/../x"])
    assert places.out == Path("runs", "pleural-thickening----x")
    assert places.folders == (Path.cwd(),)
    assert recipe.data.target == "Pleural_Thickening/../x"
    assert task == "run"


def test_the_command_line_precedes_the_file_and_the_file_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "paper"\n[run]\nbatch = 16\nseed = 5\n', encoding="utf-8")
    recipe, _, _ = read_arguments([*DATA, "--recipe", str(path), "--set", "run.batch=8"])
    assert (recipe.run.batch, recipe.run.seed) == (8, 5)
    assert recipe.target_model == preset("paper").target_model


def test_options_are_short_for_values_of_the_recipe() -> None:
    options = ["--seed", "7", "--threads", "3", "--device", "cuda"]
    recipe, _, _ = read_arguments([*DATA, *options])
    assert (recipe.run.seed, recipe.run.threads, recipe.run.device) == (7, 3, "cuda")


def test_a_recipe_that_names_its_target_needs_no_option(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ntarget = "edema"\n', encoding="utf-8")
    recipe, places, _ = read_arguments(["--recipe", str(path), "--data", "data"])
    assert (recipe.data.target, places.out) == ("edema", Path("runs", "edema"))


def test_a_recipe_that_is_printed_is_one_to_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--recipe", "paper", "--set", "run.batch=16", "--print-recipe"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    recipe, _, _ = read_arguments([*DATA, "--recipe", str(path), "--set", "run.bfloat16=false"])
    assert recipe == preset("paper", **{"run.batch": 16, "run.bfloat16": False})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("explanation_module.epoch=3", "did you mean explanation_module.epochs"),
        ("run.batch=0", "run.batch = 0: should be greater than or equal to 1"),
        ("serving.gamma=low", 'serving.gamma = "low": should be a valid number'),
    ],
)
def test_a_wrong_value_ends_with_one_line(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DATA, "--set", option]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("able", "has"),
    [({"avx2": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True), ({}, False)],
)
def test_mixed_precision_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert has_bfloat16("cpu") is has
    assert read_arguments(DATA)[0].run.bfloat16 is has
    for said in (True, False):
        option = f"run.bfloat16={str(said).lower()}"
        assert read_arguments([*DATA, "--set", option])[0].run.bfloat16 is said


@pytest.mark.parametrize("task", [[], ["--ablation"]], ids=["run", "ablation"])
@pytest.mark.parametrize(
    "place", [lambda file: file, lambda file: file / "new", lambda file: Path("x" * 300)]
)
def test_out_is_tried_before_anything_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: Callable[[Path], Path],
    task: list[str],
) -> None:
    def read(*_: Any, **__: Any) -> None:
        pytest.fail("it was read")

    monkeypatch.setattr(prepare, "find_cases", read)
    file = tmp_path / "file"
    file.write_text("not a folder")
    assert main([*DATA[:4], *task, "--out", str(place(file))]) == 1
    error = capsys.readouterr().err
    assert "choose another --out" in error
    assert len(error.strip().splitlines()) == 1
    assert file.read_text() == "not a folder"


def test_a_processor_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*DATA, "--device", "cuda"]) == 1
    assert "PyTorch finds no GPU: leave --device out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "teachers"),
    [
        ([], 5),
        (["--set", "target_model.teachers=2"], 2),
        (["--recipe", "paper"], 0),
        (["--target-model", "model.safetensors"], 0),
        (["--target-model", "model.safetensors", "--set", "target_model.teachers=0"], 0),
        (["--recipe", "nem-u"], 0),
        (["--recipe", "paper-nem-u"], 0),
        (["--ablation"], 0),
    ],
)
def test_teachers_are_the_default_where_a_target_model_is_trained(
    options: list[str], teachers: int
) -> None:
    recipe, _, _ = read_arguments([*DATA, *options])
    assert recipe.target_model.teachers == teachers


@pytest.mark.parametrize(
    "options",
    [
        ["--target-model", "model.safetensors", "--set", "target_model.teachers=2"],
        ["--recipe", "nem-u", "--set", "target_model.teachers=2"],
        ["--dry-run", "--ablation"],
        ["--dry-run", "--print-recipe"],
        ["--output", "1"],
        ["--activation", "softmax"],
        ["--output-names", "a,b"],
        ["--target-model", "model.safetensors", "--recipe", "nem-u", "--output", "1"],
        ["--target-model", "model.safetensors", "--initial-weights", "model.safetensors"],
    ],
)
def test_what_cannot_be_asked_together(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DATA, *options]) == 1
    assert "--dry-run and" in (error := capsys.readouterr().err) or "change nothing here" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "target_model.epochs=3"], "change nothing here"),
        (["--set", "input.size=32"], "change nothing here"),
        (["--output-names", "a,b"], "change nothing here"),
        (["--activation", "softmax"], "change nothing here"),
        (["--keep-module", "--set", "explanation_module.area_weight=9"], "change nothing here"),
        (["--keep-module", "--set", "run.batch=9"], "change nothing here"),
    ],
)
def test_what_a_bundle_says_is_not_said_again(
    random_bundle: Bundle, options: list[str], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        read_arguments([*DATA, "--target-model", str(random_bundle.folder), *options])


def test_a_module_is_kept_of_a_bundle_only() -> None:
    with pytest.raises(TrainingError, match="name the bundle by --target-model"):
        read_arguments([*DATA, "--keep-module"])


def test_what_cannot_be_trained_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nih = write_nih(tmp_path / "nih")
    for target, data, message in (
        ("melanoma", str(nih), "no NIH label"),
        ("pneumonia", "nowhere", "does not exist"),
    ):
        options = ["--target", target, "--data", data, "--out", str(tmp_path / "new")]
        assert main([*quick(), *options]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("options", [["--target", ""], ["--set", 'data.target=""']])
def test_an_empty_target_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--data", "data", "--out", "out"]) == 1
    assert 'data.target = "": ' in capsys.readouterr().err
