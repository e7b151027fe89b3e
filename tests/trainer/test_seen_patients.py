"""No patient whom a bundle has seen is a test patient, and no bundle says who they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemt_dicom.errors import DataError
from tests.trainer.synthetic_sets import write_csv, write_csv_set
from trainer.cli import main as train
from trainer.data.cases import Case
from trainer.data.tables import read_table
from trainer.eval_cli import main
from trainer.seen_patients import DIGITS, record_of_seen, require_unseen
from trainer.training.places import Places

MASK = [
    "--target", "pneumonia", "--set", "explanation_module.epochs=1", "--set", "run.batch=8",
    "--set", "explanation_module.area_weight=1", "--threads", "1",
]  # fmt: skip
QUICK = [
    *MASK, "--set", "target_model.backbone=test_efficientnet",
    "--set", "target_model.pretrained=false", "--set", "input.size=64",
    "--set", "target_model.epochs=2", "--set", "target_model.teachers=0",
]  # fmt: skip


def case(patient: str, split: str = "test", source: str = "NIH", name: str = "") -> Case:
    path = Path(f"{name or patient}.png")
    found: Any = {"path": path, "source": source, "kind": "picture", "patient": patient}
    return Case(**found, label=1, split=split)  # type: ignore[arg-type]


def bundle_of(*cases: Case, **places: Any) -> Any:
    """What is read of a bundle that was trained on these."""
    given = Places(folders=(), out=Path("out"), cache=Path("cache"), **places)
    data = SimpleNamespace(seen=record_of_seen(cases, given))
    manifest = SimpleNamespace(name="pneumonia", version="1", data=data)
    return SimpleNamespace(folder=Path("bundle"), manifest=manifest)


def test_training_and_validation_patients_are_no_test_patients() -> None:
    bundle = bundle_of(case("1", "train"), case("2", "validation"), case("3", "test"))
    assert require_unseen(bundle, [case("3"), case("4")]) == ()
    for patient in ("1", "2"):
        with pytest.raises(DataError, match="1 of 2 patients of the test split are training or"):
            require_unseen(bundle, [case(patient), case(patient), case("4")])
    assert require_unseen(bundle, [case("1", source="CSV")]) == ()  # another's number 1


def test_weights_that_others_trained_may_have_seen_anybody() -> None:
    bundle = bundle_of(case("1", "train"), initial_weights=Path("others.safetensors"))
    (note,) = require_unseen(bundle, [case("3")])
    assert "knows only a part" in note


def test_no_patient_stands_in_a_record_and_no_two_are_alike() -> None:
    cases = [case("secret", "train"), case("secret", "train"), case("hidden", "validation")]
    one, other = (bundle_of(*cases).manifest.data.seen for _ in range(2))
    assert "secret" not in one.model_dump_json()
    assert [len(part) for part in one.hashes.split()] == [DIGITS] * 2
    assert not set(one.hashes.split()) & set(other.hashes.split())


def test_rsnas_patients_are_nihs_and_its_images_are_known_without_them() -> None:
    bundle = bundle_of(case("13", "train", "RSNA", "image-1"))
    for found in (case("13"), case("image-1", source="RSNA"), case("13", "test", "RSNA", "b")):
        with pytest.raises(DataError, match="1 of 1 patients"):
            require_unseen(bundle, [found])
    nameless = bundle_of(case("image-1", "train", "RSNA"))
    with pytest.raises(DataError, match="1 of 1 patients"):
        require_unseen(nameless, [case("13", "test", "RSNA", "image-1")])
    assert "knows only a part" in require_unseen(nameless, [case("14")])[0]


def test_a_bundle_of_a_bundle_has_seen_what_both_have() -> None:
    first = bundle_of(case("1", "train"))
    second = bundle_of(case("2", "train"), target_model=Path("file"), bundle=first)
    third = bundle_of(
        case("3", "train"),
        case("4", "validation"),
        target_model=Path("file"),
        bundle=second,
        keep_module=True,
    )
    for patient in ("1", "2", "4"):
        with pytest.raises(DataError):
            require_unseen(third, [case(patient)])
    assert require_unseen(third, [case("3")]) == ()  # nothing was trained on it


def test_what_is_not_recorded_is_said() -> None:
    former: Any = None
    for data in (None, SimpleNamespace(seen=None)):
        former = SimpleNamespace(manifest=SimpleNamespace(name="old", version="1", data=data))
        assert "no record" in require_unseen(former, [case("1")])[0]
    of_a_file = bundle_of(case("1", "train"), target_model=Path("file"))
    of_the_former = bundle_of(case("1", "train"), target_model=Path("file"), bundle=former)
    for bundle in (of_a_file, of_the_former):
        assert "knows only a part" in require_unseen(bundle, [case("2")])[0]
        with pytest.raises(DataError):
            require_unseen(bundle, [case("1")])


def test_other_splits_of_the_same_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv_set(tmp_path / "data", count=96)
    out = tmp_path / "bundle"
    assert train([*QUICK, "--data", str(data), "--out", str(out)]) == 0
    rows = read_table(data / "labels.csv", ("path",))
    placed: list[dict[str, object]] = [
        row | {"split": "test" if i < 32 else "train"} for i, row in enumerate(rows)
    ]
    write_csv(data / "placed.csv", placed)
    given = ["--bundle", str(out), "--quick", "--methods", "random"]
    other = ["--data", str(data / "placed.csv")]
    assert main([*given, *other, "--out", str(tmp_path / "refused")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "of 16 patients of the test split are training or validation patients" in error
    assert main([*given, *other, "--split", "train", "--out", str(tmp_path / "asked")]) == 0
    assert main([*given, "--data", str(data), "--out", str(tmp_path / "same")]) == 0
    capsys.readouterr()
    again = [*MASK, "--target-model", str(out), "--out", str(tmp_path / "again")]
    assert train([*again, *other]) == 1
    assert "of 16 patients of the test split" in " ".join(capsys.readouterr().err.split())
