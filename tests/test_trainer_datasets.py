"""Recognising data folders, splitting by patient, and what is refused."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_sets import write_csv, write_nih, write_rsna

from nemt_dicom.errors import DataError
from nemt_dicom.preprocess import Preprocessing
from trainer.datasets import (
    describe,
    find_cases,
    fingerprint,
    is_validation,
    load_examples,
    read_boxes,
)

PREPROCESSING = Preprocessing(size=48, low_percentile=0.5, high_percentile=99.5)


def find(*folders: Path, target: str = "pneumonia", share: float = 0.4):
    return find_cases(folders, target=target, validation_share=share)


def edit(path: Path, change) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    write_csv(path, rows)


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    return write_rsna(tmp_path / "rsna")


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    return write_nih(tmp_path / "nih")


def test_both_layouts_are_recognised_from_their_files(rsna: Path, nih: Path) -> None:
    cases = find(rsna, nih)
    assert {case.source for case in cases} == {"RSNA", "NIH"}
    assert len(cases) == 64
    assert sum(case.label for case in cases) == 32
    assert {case.split for case in cases} == {"train", "validation", "test"}
    assert sum(row["images"] for row in describe(cases).values()) == 64


def test_validation_is_a_stable_share_of_training_patients(rsna: Path, nih: Path) -> None:
    together = {case.path: case.split for case in find(rsna, nih)}
    alone = {case.path: case.split for case in find(nih)}
    assert all(together[path] == split for path, split in alone.items())
    share = np.mean([is_validation(str(patient), 0.15) for patient in range(20000)])
    assert share == pytest.approx(0.15, abs=0.01)


def test_all_images_of_a_patient_share_a_split(nih: Path) -> None:
    def one_patient(rows) -> None:
        for row in rows[:6]:
            row["Patient ID"] = "7"

    edit(nih / "Data_Entry_2017_v2020.csv", one_patient)
    assert len({case.split for case in find(nih) if case.patient == "7"}) == 1


def test_a_patient_in_two_splits_is_an_error_across_folders(tmp_path: Path) -> None:
    rsna = write_rsna(tmp_path / "rsna", first_patient=0)
    nih = write_nih(tmp_path / "nih", first_patient=31)  # RSNA's last, a test patient
    with pytest.raises(DataError, match="patient 31 for one"):
        find(rsna, nih)


def test_fingerprint_follows_labels_and_splits(nih: Path) -> None:
    cases = find(nih)
    changed = (replace(cases[0], label=1 - cases[0].label), *cases[1:])
    assert fingerprint(cases) == fingerprint(cases[::-1]) != fingerprint(changed)


def test_examples_come_in_order_with_their_labels(rsna: Path) -> None:
    cases = find(rsna)
    done = []
    examples = load_examples(cases, PREPROCESSING, done=lambda: done.append(1))
    assert examples.images.shape == (32, 1, 48, 48)
    assert examples.images.dtype == np.float32
    assert examples.labels.tolist() == [case.label for case in cases]
    assert len(done) == 32
    assert examples.inside.all()


def test_boxes_are_read_in_the_model_frame_and_only_for_positives(rsna: Path) -> None:
    cases = find(rsna)
    examples = load_examples(cases[:2], PREPROCESSING, done=lambda: None)
    assert read_boxes(cases[0], examples.geometries[0]) is None
    region = read_boxes(cases[1], examples.geometries[1])
    assert region is not None
    expected = np.zeros((48, 48), bool)
    expected[15:33, 10:25] = True  # half of y 30 to 66, x 20 to 50
    assert np.array_equal(region, expected)


def test_the_trainer_proper_cannot_reach_the_boxes() -> None:
    folder = Path(find_cases.__code__.co_filename).parent
    users = {path.name for path in folder.glob("*.py") if "read_boxes" in path.read_text("utf-8")}
    assert users == {"datasets.py", "evaluate.py"}


def test_unknown_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither RSNA .* nor NIH"):
        find(tmp_path)


def test_same_folder_twice(nih: Path) -> None:
    with pytest.raises(DataError, match="given twice"):
        find(nih, nih / ".." / nih.name)


def test_missing_image(nih: Path) -> None:
    (nih / "images" / "00000003_000.png").unlink()
    with pytest.raises(DataError, match=r"1 images .* missing: .*00000003_000\.png"):
        find(nih)


def test_target_without_rows(nih: Path, rsna: Path) -> None:
    with pytest.raises(DataError, match=r"no NIH label; allowed: .*Pneumonia"):
        find(nih, target="melanoma")
    with pytest.raises(DataError, match="lacks images with or without 'hernia'"):
        find(nih, target="hernia")
    with pytest.raises(DataError, match="labels for 'pneumonia' only, not 'edema'"):
        find(rsna, target="edema")


def test_unreadable_image(rsna: Path) -> None:
    path = rsna / "stage_2_train_images" / "image-2.dcm"
    path.write_bytes(b"not DICOM")
    with pytest.raises(DataError, match=r"image-2\.dcm: cannot be read as a radiograph"):
        load_examples(find(rsna), PREPROCESSING, done=lambda: None)


def test_refused_image_names_the_reason(rsna: Path) -> None:
    import pydicom

    path = rsna / "stage_2_train_images" / "image-2.dcm"
    ds = pydicom.dcmread(path)
    ds.BodyPartExamined = "KNEE"
    ds.save_as(path)
    with pytest.raises(DataError, match="not_chest"):
        load_examples(find(rsna), PREPROCESSING, done=lambda: None)


def test_box_outside_the_image(rsna: Path) -> None:
    edit(rsna / "stage_2_train_labels.csv", lambda rows: rows[1].update(width="90.0"))
    case = next(case for case in find(rsna) if case.path.stem == "image-1")
    geometry = load_examples([case], PREPROCESSING, done=lambda: None).geometries[0]
    with pytest.raises(DataError, match="outside the image"):
        read_boxes(case, geometry)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("splits.csv", lambda rows: rows.append(rows[0]), "stands there twice"),
        ("splits.csv", lambda rows: rows.pop(), "lacks 1 images"),
        ("splits.csv", lambda rows: rows[0].update(split="dev"), "allowed: train, test"),
        ("stage_2_train_labels.csv", lambda rows: rows[0].update(Target="2"), "not 0 or 1"),
        (
            "stage_2_train_labels.csv",
            lambda rows: rows.append(rows[0] | {"Target": "1"}),
            "has both labels",
        ),
        ("stage_2_train_labels.csv", lambda rows: [r.pop("Target") for r in rows], "lacks the col"),
    ],
)
def test_contradictions_in_rsna_tables(rsna: Path, file: str, change, message: str) -> None:
    edit(rsna / file, change)
    with pytest.raises(DataError, match=message):
        find(rsna)


def test_contradictions_in_nih_tables(nih: Path) -> None:
    edit(nih / "Data_Entry_2017_v2020.csv", lambda rows: rows.append(rows[0]))
    with pytest.raises(DataError, match="stands there twice"):
        find(nih)
    (nih / "Data_Entry_2017_v2020.csv").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        find(nih)


@pytest.mark.realdata
def test_the_real_sets(real_data: Path) -> None:
    cases = find(real_data / "nih-mini", real_data / "rsna-mini", share=0.15)
    assert sum(case.split == "test" for case in cases) == 117
    patients = {split: {c.patient for c in cases if c.split == split} for split in
                ("train", "validation", "test")}  # fmt: skip
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["validation"]
    assert not patients["validation"] & patients["test"]
