"""The paper's ablation on one target model: its variants, its table, and a second call."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from nemt_dicom.errors import TrainingError
from tests.trainer.synthetic_sets import write_rsna
from tests.trainer.training_kit import BACKBONE, quick, small_recipe
from trainer.ablation import BASE, Ablation, run_ablation
from trainer.cli import main, read_arguments
from trainer.progress import Silent
from trainer.training.recipe_file import changed, preset


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rsna(tmp_path_factory.mktemp("sets") / "rsna", count=64)


def arguments(rsna: Path, out: Path, *options: str) -> list[str]:
    data = ["--target", "pneumonia", "--data", str(rsna), "--out", str(out)]
    return [*data, *quick(), "--ablation", *options]


def test_the_variants_are_the_papers() -> None:
    recipes = Ablation().recipes(small_recipe())
    assert list(recipes) == [
        BASE, "λ₁ 1.0", "λ₁ 0.66", "λ₁ 0.4", "λ₁ 0.33", "14 x 14", "17 x 17", "24 x 24", "28 x 28",
        "no filter", "literal equation (2)",
    ]  # fmt: skip
    base, paper = recipes[BASE].explanation_module, preset("paper").explanation_module
    assert base == paper.model_copy(
        update={name: getattr(base, name) for name in ("decoder", "epochs", "patience")}
    )
    assert recipes["no filter"].explanation_module.neighbourhood == 1
    for name, recipe in recipes.items():  # one thing is changed
        differing = [n for n, value in recipe.values() if value != dict(recipes[BASE].values())[n]]
        assert len(differing) == (name != BASE)


def test_the_ablation_and_a_second_call(
    rsna: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablation"
    recipe, places, _ = read_arguments(arguments(rsna, out))
    few = Ablation(area_weights=(0.5, 0.33), neighbourhoods=(21, 14))
    text = run_ablation(recipe, places, Silent(), few)
    for name in ("λ₁ 0.5, 21 x 21", "λ₁ 0.33", "14 x 14", "no filter", "literal equation (2)"):
        assert f"| {name} |" in text
    assert (out / "ablation.md").read_text("utf-8") == text + "\n"
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    del written["config.json"]
    assert run_ablation(recipe, places, Silent(), few) == text  # nothing is computed again
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written
    with pytest.raises(TrainingError, match=r"other settings \(run\.seed\)"):
        run_ablation(changed(recipe, {"run.seed": 2}), places, Silent(), few)


def test_the_ablation_of_a_target_model_that_exists(rsna: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model(BACKBONE, num_classes=1).state_dict(), path)
    given = arguments(rsna, tmp_path / "out", "--target-model", str(path), "--output", "0")
    recipe, places, _ = read_arguments(given)
    only = Ablation(area_weights=(), neighbourhoods=())
    assert "| no filter |" in run_ablation(recipe, places, Silent(), only)
    assert not (tmp_path / "out" / "target-model.pt").exists()


def test_the_ablation_has_no_teachers(
    rsna: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(rsna, tmp_path / "out", "--set", "target_model.teachers=2")) == 1
    assert "neither teachers" in capsys.readouterr().err
