"""`nemt-train` from folders to a bundle that loads and explains, on a few synthetic images."""

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from nemt_dicom.config import ExplanationSettings, InputSettings
from nemt_dicom.errors import TrainingError
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle, write_manifest
from nemt_dicom.model.explainer import Explainer
from tests.conftest import ROOT
from tests.trainer.synthetic_sets import write_csv_set, write_nih, write_rsna
from trainer import prepare
from trainer.cli import main, read_arguments
from trainer.manifest import start_of, trained_by
from trainer.options import build_parser
from trainer.training.precision import has_bfloat16
from trainer.training.recipe import NEM_U, Places, TrainingConfig

QUICK = [
    "--target", "pneumonia", "--backbone", "test_efficientnet", "--random-init", "--size", "64",
    "--classifier-epochs", "2", "--mask-epochs", "1", "--batch", "8", "--threads", "1",
    "--teachers", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    rsna, nih = write_rsna(folder / "rsna", count=32), write_nih(folder / "nih")
    out = folder / "bundle"
    data = ["--data", str(rsna), "--data", str(nih)]
    assert main([*QUICK, *data, "--out", str(out)]) == 0
    return out


def test_the_bundle_loads_and_explains(trained: Path) -> None:
    bundle = Bundle.load(trained)
    explainer = Explainer(bundle, ExplanationSettings(device="cpu"))
    path = next((trained.parent / "rsna" / "stage_2_train_images").glob("*.dcm"))
    radiograph = Radiograph.from_dataset(pydicom.dcmread(path), InputSettings())
    (explanation,) = explainer.explain([radiograph])
    assert np.isfinite(explanation.mask).all()
    assert bundle.manifest.source_kinds == ("dicom", "picture")


def test_the_manifest_holds_recipe_data_and_figures(trained: Path) -> None:
    manifest = json.loads((trained / "manifest.json").read_text("utf-8"))
    assert manifest["training"]["recipe"]["classifier_epochs"] == 2
    assert manifest["training"]["half_precision_changes_answer"] < 0.005
    assert manifest["training"]["weights"] == "float16"
    assert manifest["data"]["splits"]["RSNA test"] == {
        "images": 16, "positives": 8, "patients": 16,
    }  # fmt: skip
    metrics = manifest["metrics"]
    for figure in (metrics["auc"]["all"], metrics["mask_area"]["positives"]):
        assert figure["lo"] <= figure["mean"] <= figure["hi"]
    assert set(metrics["methods"]) == {
        "nemt", "gradcam++", "integrated_gradients", "gradient_shap", "mean_of_boxes",
        "centred_blob", "random", "shuffled_module",
    }  # fmt: skip
    assert metrics["methods"]["gradient_shap"]["library"].startswith("captum ")
    for row in metrics["methods"].values():
        for name in ("relevance_mass", "relevance_rank", "complexity", "sparseness", "seconds"):
            assert row[name]["lo"] <= row[name]["mean"] <= row[name]["hi"]
    assert metrics["methods"]["nemt"]["faithfulness"]["n"] == 8
    assert "nemt_over" in metrics["methods"]["gradcam++"]
    assert metrics["classifier"]["seconds"]["mean"] > 0
    assert metrics["methods"]["random"]["relevance_mass"]["mean"] == pytest.approx(
        metrics["truth_share"]["mean"], abs=0.02
    )
    assert sum(metrics["drawn"]["boxed_verdicts"].values()) == 8
    assert Bundle.load(trained).manifest.evaluated


def test_the_card_says_what_it_must_and_names_no_folder(trained: Path) -> None:
    card = (trained / "MODEL_CARD.md").read_text("utf-8")
    for text in (
        "Not for clinical use",
        "Wang et al.",
        "Shih et al.",
        "95 %",
        "commit",
        "bootstrap",
        "| GradCAM++ |",
        "own less others",
        "faithfulness ↑",
        "captum",
    ):
        assert text in card
    for text in (card, (trained / "manifest.json").read_text("utf-8")):
        assert str(trained.parent) not in text


def test_the_run_folder(trained: Path) -> None:
    with (trained / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"classifier", "explanation module"}
    for name in ("curves.png", "masks.png", "comparison.png"):
        assert (trained / "run" / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_bundle(trained: Path) -> None:
    folder = trained.parent
    data = ["--data", str(folder / "rsna"), "--data", str(folder / "nih")]
    again = folder / "again"
    assert main([*QUICK, *data, "--out", str(again)]) == 0
    name = "model.safetensors"
    assert (again / name).read_bytes() == (trained / name).read_bytes()


def test_a_bundles_target_model_gets_another_explanation_module(
    trained: Path, tmp_path: Path
) -> None:
    sets, out = trained.parent, tmp_path / "again"
    data = ["--data", str(sets / "rsna"), "--data", str(sets / "nih")]
    mask = ["--mask-epochs", "2", "--batch", "8", "--threads", "1", "--seed", "2"]
    given = ["--target", "pneumonia", "--target-model", str(trained), *mask]
    assert main([*given, *data, "--out", str(out)]) == 0
    one, other = Bundle.load(trained), Bundle.load(out)
    before, after = one.network("cpu"), other.network("cpu")
    for name, value in before.target_model.state_dict().items():
        assert torch.equal(value, after.target_model.state_dict()[name]), name
    assert other.architecture.outputs == one.architecture.outputs
    assert other.preprocessing.size == 64
    recipe = other.manifest.training["recipe"]
    assert (recipe["backbone"], recipe["classifier_epochs"]) == ("test_efficientnet", 2)
    assert recipe["mask_epochs"] == 2
    origin = other.manifest.training["target_model_bundle"]
    assert origin["digest"] == one.digest
    assert [e[1] for e in origin["epochs"]] == [1, 2]
    assert other.manifest.training["epochs"][0][0] == "explanation module"
    card = (out / "MODEL_CARD.md").read_text("utf-8")
    assert f"from the bundle pneumonia {one.manifest.version} (`{one.digest[:12]}`)" in card


def test_a_bundle_is_served_otherwise_without_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, out = trained.parent, tmp_path / "otherwise"
    data = ["--target", "pneumonia", "--data", str(sets / "rsna"), "--data", str(sets / "nih")]
    given = ["--target-model", str(trained), "--keep-module", "--gamma", "1", "--threads", "1"]
    assert main([*data, *given, "--out", str(out)]) == 0
    one, other = Bundle.load(trained), Bundle.load(out)
    before, after = (bundle.network("cpu").state_dict() for bundle in (one, other))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (one.architecture.gamma, other.architecture.gamma) == (0.5, 1.0)
    ours, theirs = (bundle.manifest.training["recipe"] for bundle in (other, one))
    assert ours == theirs | {"gamma": 1.0}
    origin = other.manifest.training["target_model_bundle"]
    assert origin["epochs"] == one.manifest.training["epochs"]
    card = (out / "MODEL_CARD.md").read_text("utf-8")
    assert "Target model and explanation module are from the bundle" in card
    assert "Thresholds and figures were made by" in card  # and not trained
    capsys.readouterr()
    assert main([*data, *given, "--dry-run", "--out", str(tmp_path / "none")]) == 0
    assert "Nothing is trained." in capsys.readouterr().out
    for options in (["--target", "edema"], ["--output", "abnormal"]):
        nih = ["--target", "pneumonia", "--data", str(sets / "nih"), *given]
        assert main([*nih, *options, "--out", str(tmp_path / "none")]) == 1
        assert "explains 'pneumonia'" in capsys.readouterr().err
    for options in (["--area-weight", "9"], ["--teachers", "5"], ["--mask-epochs", "30"]):
        assert main([*data, *given, *options, "--out", str(tmp_path / "none")]) == 1
        assert "change nothing here" in capsys.readouterr().err
    assert main([*data, "--keep-module", "--out", str(tmp_path / "none")]) == 1
    assert "name the bundle by --target-model" in capsys.readouterr().err


def test_a_bundle_names_all_whose_work_it_holds(trained: Path, tmp_path: Path) -> None:
    sets, taught, served = trained.parent, tmp_path / "taught", tmp_path / "served"
    data = ["--data", str(sets / "rsna"), "--data", str(sets / "nih"), "--target", "pneumonia"]
    short = ["--mask-epochs", "1", "--batch", "8", "--threads", "1", "--seed", "3"]
    assert main([*data, *short, "--target-model", str(trained), "--out", str(taught)]) == 0
    kept = ["--keep-module", "--gamma", "1", "--target-model", str(taught)]
    assert main([*data, *kept, "--out", str(served)]) == 0
    first, second, third = (Bundle.load(folder) for folder in (trained, taught, served))
    training = third.manifest.training
    start = training["target_model_bundle"]
    assert (start["digest"], start["module_kept"]) == (second.digest, True)
    assert start["epochs"] == second.manifest.training["epochs"]
    assert start_of(training)["digest"] == first.digest
    assert start_of(first.manifest.training) is first.manifest.training
    card = (served / "MODEL_CARD.md").read_text("utf-8")
    assert "Its explanation module was trained by" in card
    assert "The test split trained nothing" in card

    def origin(*, keep: bool) -> Any:
        place = tmp_path / "none"
        return trained_by(
            Places(folders=(), out=place, cache=place, bundle=third, keep_module=keep)
        )

    assert origin(keep=True)["digest"] == second.digest  # the third one trained nothing
    anew = origin(keep=False)
    assert (anew["digest"], anew["module_kept"]) == (first.digest, False)
    assert {epoch[0] for epoch in anew["epochs"]} == {"classifier"}


def test_a_bundle_on_other_data_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_rsna(tmp_path / "rsna", count=64)
    given = ["--target", "pneumonia", "--target-model", str(trained), "--data", str(other)]
    short = ["--mask-epochs", "1", "--batch", "8", "--threads", "1"]
    assert main([*given, *short, "--out", str(tmp_path / "out")]) == 0
    assert "was trained on other data" in " ".join(capsys.readouterr().err.split())
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text("utf-8")
    assert "was trained on other data" in card
    assert "had seen it is not known here" in card
    assert "trained nothing" not in card
    assert "The test split trained nothing" in (trained / "MODEL_CARD.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("able", "has"),
    [({"avx2": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True), ({}, False)],
)
def test_mixed_precision_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    given = ["--target", "pneumonia", "--data", "data", "--out", "out"]
    assert has_bfloat16("cpu") is has
    assert read_arguments(given)[0].bfloat16 is has
    assert read_arguments([*given, "--bfloat16"])[0].bfloat16
    assert not read_arguments([*given, "--no-bfloat16"])[0].bfloat16


def test_out_must_be_new(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*QUICK, "--data", str(trained.parent / "nih"), "--out", str(trained)]
    assert main(arguments) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--target": "melanoma"}, "no NIH label"),
        ({"--data": "nowhere"}, "does not exist"),
        ({"--label-smoothing": "0.5"}, "label smoothing"),
        ({"--area-weight": "0"}, "area weight"),
        ({"--batch": "0"}, "at least 1"),
        ({"--size": "16"}, "the size is 32 to 2048"),
        ({"--size": "4096"}, "the size is 32 to 2048"),
        ({"--classifier-lr": "-1"}, "step size"),
        ({"--classifier-lr": "0"}, "step size"),
        ({"--classifier-lr": "nan"}, "classifier_lr is nan"),
        ({"--full-from": "inf"}, "full_from is inf"),
        ({"--exponent": "0"}, "exponent"),
        ({"--seed": "-1"}, "seed"),
        ({"--seed": str(2**63)}, "seed"),
        ({"--threads": "1000000"}, "threads"),
        ({"--decoder-width": "0"}, "decoder's width"),
        ({"--neighbourhood": "65"}, "neighbourhood"),
    ],
)
def test_what_cannot_be_trained_fails_with_a_reason(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message: str
) -> None:
    options = {"--data": str(trained.parent / "nih"), "--out": str(tmp_path / "new")}
    arguments = [*QUICK, *(part for item in (options | change).items() for part in item)]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_bundles_outputs_are_its_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--target", "pneumonia", "--data", str(trained.parent / "nih")]
    given = ["--target-model", str(trained), "--out", str(tmp_path / "new")]
    for options in (["--output-names", "a,b"], ["--activation", "softmax"]):
        assert main([*data, *given, *options]) == 1
        assert "change nothing here" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"split": "test"}, {"label": "0"}])
def test_one_file_is_in_one_split_with_one_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str]
) -> None:
    table = write_csv_set(tmp_path / "own") / "labels.csv"
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    for number, row in enumerate(rows):
        row["split"] = "test" if number // 2 % 3 == 0 else "train"
    train = [row for row in rows if row["split"] == "train" and row["label"] == "1"]
    known = next(row for row in train if row["path"].endswith("png"))
    shutil.copy(table.parent / known["path"], table.parent / "copy.png")
    rows.append(known | {"path": "copy.png", "patient_id": "other"} | change)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    data = ["--target", "sick", *QUICK[2:], "--data", str(table.parent)]
    assert main([*data, "--out", str(tmp_path / "out")]) == 1
    assert "1 images are the same file under two names" in capsys.readouterr().err


def test_a_label_that_only_bad_images_have_ends_the_run_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nih = write_nih(tmp_path / "nih")
    for i in range(1, 32, 2):
        if i >= 24:  # the positives of the test split
            (nih / "images" / f"{i:08d}_000.png").write_bytes(b"no image")
    given = [*QUICK, "--data", str(nih), "--out", str(tmp_path / "out"), "--skip-bad"]
    assert main(given) == 1
    assert "the test split has no image with 'pneumonia', of 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_steps_decay_is_not_negative() -> None:
    with pytest.raises(TrainingError, match="weight decay"):
        TrainingConfig(classifier_weight_decay=-0.1)


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
    assert main([*QUICK, *task, "--data", "data", "--out", str(place(file))]) == 1
    error = capsys.readouterr().err
    assert "choose another --out" in error
    assert len(error.strip().splitlines()) == 1
    assert file.read_text() == "not a folder"


def test_a_processor_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--target", "pneumonia", "--data", "data", "--out", "out"]
    assert main([*given, "--device", "cuda"]) == 1
    assert "PyTorch finds no GPU: leave --device out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "test_vit", "--size", "65"], "'test_vit' on images of 65 x 65"),
        (["--backbone", ""], "timm has no model ''"),
        (["--backbone", "hf-hub:nobody/nothing"], "timm has no model"),
    ],
)
def test_a_backbone_that_does_not_fit_is_told_before_images_are_read(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    def read(*_: Any, **__: Any) -> None:
        pytest.fail("it was read")

    monkeypatch.setattr(prepare, "load_split", read)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = ["--data", str(trained.parent / "nih"), "--out", str(tmp_path / "new")]
    assert main([*QUICK, *data, *options]) == 1
    assert message in capsys.readouterr().err


def test_a_representation_is_trained_until_its_loss_settles() -> None:
    given = ["--target", "pneumonia", "--data", "data", "--out", "out", "--objective", "nem-u"]
    config, _, _ = read_arguments(given)
    assert (config.mask_epochs, config.keep) == (12, "loss")
    config, _, _ = read_arguments([*given, "--mask-epochs", "3", "--keep", "last"])
    assert (config.mask_epochs, config.keep) == (3, "last")
    config, _, _ = read_arguments([*given, "--preset", "paper", "--initial-weights", "w"])
    assert (config.mask_epochs, config.keep) == (5, "last")
    told = " ".join(build_parser().format_help().split())
    assert all(f"{name} {value}" in told for name, value in NEM_U["default"].items())


def test_imagenet_weights_are_for_one_backbone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for part in QUICK if part != "--random-init"]
    data = ["--data", str(trained.parent / "nih"), "--out", str(tmp_path / "new")]
    assert main([*arguments, *data]) == 1
    assert "--random-init" in capsys.readouterr().err


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--data", "nih"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "Boxes and lesion masks never take part in training" in capsys.readouterr().out


def test_the_distribution_owns_the_name_trainer() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "trainer" in project["tool"]["setuptools"]["packages"]
    owners = packages_distributions().get("trainer", [])
    if not owners:
        pytest.skip("nemt-dicom is not installed here")
    assert set(owners) == {"nemt-dicom"}


@pytest.mark.parametrize(
    ("options", "teachers"),
    [
        ([], 5),
        (["--teachers", "2"], 2),
        (["--preset", "paper"], 0),
        (["--target-model", "model.safetensors"], 0),
        (["--target-model", "model.safetensors", "--teachers", "0"], 0),
        (["--objective", "nem-u"], 0),
        (["--objective", "nem-u", "--preset", "paper"], 0),
        (["--ablation"], 0),
    ],
)
def test_teachers_are_the_default_where_a_target_model_is_trained(
    options: list[str], teachers: int
) -> None:
    given = ["--target", "pneumonia", "--data", "data", "--out", "out"]
    config, _, _ = read_arguments([*given, *options])
    assert config.teachers == teachers


def test_a_bundle_that_does_not_speak_of_teachers_had_none(trained: Path, tmp_path: Path) -> None:
    former = tmp_path / "former"
    shutil.copytree(trained, former)
    manifest = Bundle.load(former).manifest.model_dump(mode="json")
    del manifest["training"]["recipe"]["teachers"]
    write_manifest(former, manifest)
    given = ["--target", "pneumonia", "--data", "data", "--out", "out"]
    config, _, _ = read_arguments([*given, "--target-model", str(former)])
    assert config.teachers == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--target-model", "model.safetensors", "--teachers", "2"],
        ["--objective", "nem-u", "--teachers", "2"],
        ["--dry-run", "--ablation"],
        ["--output", "1"],
        ["--activation", "softmax"],
        ["--output-names", "a,b"],
        ["--target-model", "model.safetensors", "--objective", "nem-u", "--output", "1"],
        ["--target-model", "model.safetensors", "--initial-weights", "model.safetensors"],
    ],
)
def test_what_cannot_be_asked_together(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--target", "pneumonia", "--data", "data", "--out", "out"]
    assert main([*given, *options]) == 1
    assert "--dry-run and" in (error := capsys.readouterr().err) or "change nothing here" in error
