"""What else `nemt-train` does, whole runs on a few synthetic images: other sets, other objectives,
the ablation, the dry run, resuming as another run.
"""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from nemt_dicom.errors import BundleError
from nemt_dicom.model.bundle import Bundle
from tests.trainer.synthetic_sets import write_ham, write_rsna
from trainer import ablation, dry_run, run
from trainer.cli import main, read_arguments
from trainer.evaluation.settings import EvaluationSettings
from trainer.progress import Silent
from trainer.training.draws import Draws
from trainer.training.recipe import PRESETS
from trainer.training.thresholds import for_sensitivity

BACKBONE = "test_efficientnet"
QUICK = [
    "--size", "64", "--classifier-epochs", "1", "--mask-epochs", "1", "--batch", "8",
    "--threads", "1", "--teachers", "0",
]  # fmt: skip
SMALL = ["--backbone", BACKBONE, *QUICK]
FEW = EvaluationSettings(relax_masks_cpu=20, gradient_steps=3, resamples=100, timing_rounds=1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_rsna(folder / "rsna", count=64)
    write_ham(folder / "ham", count=140)
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))["metrics"]
    return found


def weights(path: Path, backbone: str, outputs: int) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model(backbone, num_classes=outputs).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def melanoma(sets: Path) -> Path:
    out = sets / "melanoma"
    data = ["--target", "melanoma", "--data", str(sets / "ham"), "--random-init"]
    assert main([*data, *SMALL, "--no-follow", "--sensitivity", "0.8", "--out", str(out)]) == 0
    return out


def test_photographs_of_lesions(melanoma: Path) -> None:
    bundle = Bundle.load(melanoma)
    assert bundle.architecture.activation == "softmax"
    assert len(bundle.architecture.outputs) == 7
    with pytest.raises(BundleError, match="photograph"):
        Bundle.load_served(melanoma)
    table = metrics_of(melanoma)["methods"]
    assert {"relevance_mass", "relevance_rank", "faithfulness", "seconds"} <= set(table["nemt"])
    assert "mean_of_boxes" in table


def test_the_sensitivity_asked_for_is_reached_by_the_threshold_as_written(melanoma: Path) -> None:
    found = Bundle.load(melanoma).manifest.training["thresholds"]
    assert found["sensitivity"] >= 0.8
    scores = np.array([0.2, 0.73128, 0.9, 0.1], np.float32)
    assert for_sensitivity(scores, np.array([1, 1, 1, 0], np.float32), 2 / 3) == scores[1]


def test_the_predicted_class_is_explained_by_every_method(sets: Path, melanoma: Path) -> None:
    out = sets / "predicted"
    data = ["--target", "melanoma", "--data", str(sets / "ham"), "--random-init"]
    assert main([*data, *SMALL, "--objective", "nemt-predicted", "--out", str(out)]) == 0
    ours, theirs = (metrics_of(folder)["methods"] for folder in (out, melanoma))
    assert set(ours) == set(theirs)
    with pytest.raises(BundleError, match="predicted"):
        Bundle.load_served(out)


def test_a_representation_against_relax(sets: Path) -> None:
    out = sets / "representation"
    given = ["--target-model", str(weights(sets / "features.safetensors", BACKBONE, 8))]
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), *given]
    config, places, _ = read_arguments([*data, *SMALL, "--objective", "nem-u", "--out", str(out)])
    bundle = run.run(config, places, Silent(), evaluation=FEW)
    assert bundle is not None
    assert bundle.architecture.explains == "representation"
    table = metrics_of(out)["methods"]
    assert {"nemt", "relax", "u_relax", "random"} <= set(table)
    assert "faithfulness" not in table["nemt"]


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_backbones_of_other_families(sets: Path, backbone: str) -> None:
    out = sets / backbone
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    size = ["--size", "160"] if backbone == "test_vit" else []
    words = [*data, *QUICK, *size, "--backbone", backbone, "--out", str(out)]
    config, places, _ = read_arguments(words)
    run.run(config, places, Silent(), evaluation=FEW)
    assert "gradcam++" in metrics_of(out)["methods"]


def test_a_decoder_that_does_not_fit(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    given = ["--backbone", "test_vit", "--decoder", "unet", "--size", "160"]
    assert main([*data, *given, "--out", str(sets / "unfit")]) == 1
    assert "'test_vit' with decoder 'unet' cannot be built" in capsys.readouterr().err


def test_the_ablation(
    sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "AREA_WEIGHTS", (0.5, 0.33))
    monkeypatch.setattr(ablation, "NEIGHBOURHOODS", (21, 14))
    out = sets / "ablation"
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    command = [*data, *SMALL, "--ablation", "--out", str(out)]
    assert main(command) == 0
    text = capsys.readouterr().out
    for name in ("λ₁ 0.5, 21 x 21", "λ₁ 0.33", "14 x 14", "no filter", "literal equation (2)"):
        assert f"| {name} |" in text
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert main(command) == 0  # nothing is computed again
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")} | {
        "config.json": 0
    } == written | {"config.json": 0}
    assert main([*command, "--seed", "2"]) == 1
    assert "other settings" in capsys.readouterr().err


def test_the_dry_run_spends_nothing(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sets / "dry"
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    assert main([*data, *SMALL, "--dry-run", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("RSNA train", "classifier", "explanation module", "memory"):
        assert word in text
    assert not out.exists()
    assert main([*data, *SMALL, "--batch", "4000", "--dry-run", "--out", str(out)]) == 0


def test_only_the_target_has_to_be_named(
    sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, places, _ = read_arguments(["--target", "Pleural_Thickening/../x"])
    assert places.out == Path("runs", "pleural-thickening----x")
    monkeypatch.chdir(sets / "rsna")
    assert main(["--target", "pneumonia", "--random-init", *SMALL, "--dry-run"]) == 0
    assert "RSNA train" in capsys.readouterr().out
    monkeypatch.chdir(sets)
    assert main(["--target", "pneumonia", "--random-init", *SMALL]) == 1
    assert "by --data" in capsys.readouterr().err


def test_the_dry_run_times_the_same_work_twice(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = dry_run.take_step, []

    def take_step(
        stage: Any, module: Any, rows: Any, images: torch.Tensor, key: Any, *further: Any
    ) -> Any:
        seen.append(stage.augmented(images, Draws(key, np.arange(len(rows)))))
        return whole(stage, module, rows, images, key, *further)

    monkeypatch.setattr(dry_run, "take_step", take_step)
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    assert main([*data, *SMALL, "--dry-run"]) == 0
    assert len(seen) == 2 * 2 * (1 + dry_run.STEPS)
    for piped, bare in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(piped, bare)


def test_the_ablation_has_no_teachers(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    out = sets / "untaught"
    assert main([*data, *SMALL, "--ablation", "--teachers", "2", "--out", str(out)]) == 1
    assert "neither teachers" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_stopped_before_its_first_checkpoint_is_begun_anew(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: list[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    command = [*data, *SMALL, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(run, "train_network", interrupted)
        assert main(command) == 130
    assert [p.name for p in (tmp_path / "out").rglob("*.*")] == ["config.json"]
    assert main([*command, *resume]) == 0


def test_outputs_have_names_of_their_own(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = weights(tmp_path / "model.safetensors", BACKBONE, 3)
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--output", "1"]
    given = ["--target-model", str(model), "--output-names", "a,a,b"]
    assert main([*data, *SMALL[:4], *given, "--out", str(tmp_path / "out")]) == 1
    assert "two outputs have the same name" in capsys.readouterr().err


def test_another_run_is_not_resumed(
    sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    out = sets / "stopped"
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--random-init"]
    command = [*data, *SMALL, "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", stopped)
        assert main(command) == 130
    other = weights(sets / "other.safetensors", BACKBONE, 1)
    assert main([*command, "--resume", "--target-model", str(other)]) == 1
    assert "begun with other settings (target model" in capsys.readouterr().err
    path = out / "run" / "config.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"processes": 1', '"processes": 2'), encoding="utf-8")
    assert main([*command, "--resume"]) == 1
    assert "begun with other settings (processes)" in capsys.readouterr().err
    begun = json.loads(text)
    begun["begun_with"]["software"] |= {"torch": "1.0"}
    path.write_text(json.dumps(begun), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(run.bundles, "save", full)
        assert main([*command, "--resume"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "begun with torch 1.0: other bits than of a run that never stopped" in error
    assert f"{out} cannot be written" in error
    assert "No space left on device" in error
    assert "--resume" in error
    assert main([*command, "--resume"]) == 0


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors")


def test_the_ablation_of_a_bundles_target_model(
    sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "AREA_WEIGHTS", (0.5,))
    monkeypatch.setattr(ablation, "NEIGHBOURHOODS", (21,))
    data = ["--target", "pneumonia", "--data", str(sets / "rsna")]
    taught = [*data, "--random-init", *SMALL[:-1], "1", "--out", str(sets / "taught")]
    assert main(taught) == 0
    short = ["--mask-epochs", "1", "--batch", "8", "--threads", "1"]
    given = ["--target-model", str(sets / "taught"), "--ablation", *short]
    assert main([*data, *given, "--out", str(sets / "of-a-bundle")]) == 0
    assert "| no filter |" in capsys.readouterr().out
    assert main([*data, *given[:3], "--keep-module", "--out", str(sets / "kept")]) == 1
    assert "module that is kept" in capsys.readouterr().err


def test_the_papers_preset_is_the_papers() -> None:
    command = ["--target", "pneumonia", "--data", "d", "--out", "o", "--preset", "paper"]
    config, _, _ = read_arguments(command)
    assert (config.backbone, config.size, config.decoder) == ("resnet50", 224, "unet")
    assert (config.area_weight, config.neighbourhood, config.batch) == (0.5, 21, 32)
    assert (config.classifier_epochs, config.mask_epochs) == (10, 5)
    assert set(PRESETS["paper"]) <= set(vars(config))
    config, _, _ = read_arguments([*command, "--objective", "nem-u", "--target-model", "m"])
    assert (config.area_weight, config.binary_weight, config.neighbourhood) == (0.125, 0.25, 1)
