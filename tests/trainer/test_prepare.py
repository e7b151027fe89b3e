"""What a run starts from: data that were checked, and a network that can be built."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm

from nemt_dicom.model.bundle import Bundle
from tests.trainer.bundle_kit import training, training_data
from tests.trainer.synthetic_sets import write_csv_set, write_nih
from tests.trainer.training_kit import quick, settings, small_recipe
from trainer import prepare
from trainer.cli import main
from trainer.prepare import frozen_stages
from trainer.progress import Silent
from trainer.training.distributed import Team
from trainer.training.places import Places

QUICK = ["--target", "pneumonia", *quick()]


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("sets") / "nih")


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
    data = ["--target", "sick", *quick(), "--data", str(table.parent)]
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_model.backbone": "test_vit", "input.size": 65}, "'test_vit' on images of 65"),
        ({"target_model.backbone": "none"}, "timm has no model 'none'"),
    ],
)
def test_a_backbone_that_does_not_fit_is_told_before_images_are_read(
    nih: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    values: dict[str, Any],
    message: str,
) -> None:
    def read(*_: Any, **__: Any) -> None:
        pytest.fail("it was read")

    monkeypatch.setattr(prepare, "load_split", read)
    data = ["--data", str(nih), "--out", str(tmp_path / "new")]
    assert main([*QUICK, *data, *settings(values)]) == 1
    assert message in capsys.readouterr().err


def test_a_backbone_that_cannot_be_fetched(
    nih: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(timm, "create_model", offline)
    data = ["--data", str(nih), "--out", str(tmp_path / "new")]
    assert main([*QUICK, *data, "--set", "target_model.backbone=hf-hub:nobody/nothing"]) == 1
    assert "timm has no model 'hf-hub:nobody/nothing'" in capsys.readouterr().err


def test_imagenet_weights_are_for_one_backbone(
    nih: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*QUICK, "--set", "target_model.pretrained=true"]
    data = ["--data", str(nih), "--out", str(tmp_path / "new")]
    assert main([*arguments, *data]) == 1
    assert "--set target_model.pretrained=false" in capsys.readouterr().err


def test_a_decoder_that_does_not_fit(
    nih: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = quick(
        target_model={"backbone": "test_vit"},
        explanation_module={"decoder": "unet"},
        input={"size": 160},
    )
    data = ["--target", "pneumonia", "--data", str(nih), "--out", str(tmp_path / "unfit")]
    assert main([*data, *given]) == 1
    assert "'test_vit' with decoder 'unet' cannot be built" in capsys.readouterr().err


def test_random_weights_are_never_frozen() -> None:
    recipe = small_recipe(target_model={"frozen_stages": 2})
    nowhere = Path("none")
    assert frozen_stages(recipe, Places(folders=(), out=nowhere, cache=nowhere)) == 0
    given = Places(folders=(), out=nowhere, cache=nowhere, initial_weights=Path("w"))
    assert frozen_stages(recipe, given) == 2


def test_a_bundle_on_other_data_is_told(random_bundle: Bundle, tmp_path: Path) -> None:
    data = write_nih(tmp_path / "nih")
    described = {"data": training_data(fingerprint="0" * 64), "training": training()}
    manifest = random_bundle.manifest.model_copy(update=described)
    places = Places(
        folders=(data,),
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        target_model=random_bundle.weights,
        bundle=replace(random_bundle, manifest=manifest),
        output_names=random_bundle.architecture.outputs,
    )
    ready = prepare.prepare(small_recipe(), places, Team.join("cpu"), Silent())
    assert any("was trained on other data" in note for note in ready.dataset.notes)
