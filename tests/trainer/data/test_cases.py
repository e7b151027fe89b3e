"""Data folders: recognised by their tables, split by patient, refused if they contradict."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from nemt_dicom.errors import DataError
from nemt_dicom.model.preprocess import Preprocessing
from tests.conftest import ROOT
from tests.trainer.synthetic_sets import (
    HAM_CODES,
    lesion,
    write_csv,
    write_csv_set,
    write_ham,
    write_nih,
    write_rsna,
)
from trainer.data import ground_truth as truth
from trainer.data import layouts
from trainer.data.cases import (
    Case,
    Dataset,
    describe,
    find_cases,
    fingerprint,
    read_radiograph,
)
from trainer.data.ground_truth import read_truth
from trainer.data.splits import is_test, is_validation

PREPROCESSING = Preprocessing(size=48, low_percentile=0.5, high_percentile=99.5)
RSNA_LABELS, NIH_LABELS = "stage_2_train_labels.csv", "Data_Entry_2017_v2020.csv"
HAM_LABELS, MAPPING = "HAM10000_metadata.csv", "pneumonia-challenge-dataset-mappings_2018.json"
Change = Callable[[list[dict[str, str]]], object]


def find(*folders: Path, target: str = "pneumonia", share: float = 0.4, **options) -> Dataset:
    return find_cases(folders, target=target, validation_share=share, **options)


def edit(path: Path, change: Change) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    write_csv(path, rows)  # type: ignore[arg-type]


def without(column: str) -> Change:
    return lambda rows: [row.pop(column) for row in rows]


def geometry(case: Case):
    return PREPROCESSING.geometry(read_radiograph(case))


def patients(dataset: Dataset, split: str) -> set[str]:
    return {case.patient for case in dataset.cases if case.split == split}


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    return write_rsna(tmp_path / "rsna")


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    return write_nih(tmp_path / "nih")


@pytest.fixture
def ham(tmp_path: Path) -> Path:
    return write_ham(tmp_path / "ham")


@pytest.fixture
def csv_set(tmp_path: Path) -> Path:
    return write_csv_set(tmp_path / "own")


# --- layouts ---


def test_all_auxiliary_labels_are_the_findings_of_any_image(rsna: Path, nih: Path) -> None:
    assert find(rsna, nih, auxiliary=("all",)).outputs == ("pneumonia", "abnormal", "edema")
    assert find(nih, target="edema", auxiliary=("all",)).outputs == (
        "edema", "abnormal", "pneumonia",
    )  # fmt: skip
    assert find(nih, auxiliary=("Hernia",)).outputs == ("pneumonia", "hernia")  # known to be absent
    with pytest.raises(DataError, match="no image knows the auxiliary label gout"):
        find(nih, auxiliary=("gout",))


def test_layouts_are_recognised_from_their_files(rsna: Path, nih: Path, csv_set: Path) -> None:
    dataset = find(rsna, nih, csv_set)
    assert {case.source for case in dataset.cases} == {"RSNA", "NIH", "CSV"}
    assert (dataset.target, dataset.outputs, dataset.exclusive) == (
        "pneumonia",
        ("pneumonia",),
        False,
    )
    assert len(dataset.cases) == 112
    assert sum(case.label for case in dataset.cases) == 56
    assert {case.split for case in dataset.cases} == {"train", "validation", "test"}
    assert sum(row["images"] for row in describe(dataset.cases).values()) == 112


def test_rsna(rsna: Path) -> None:
    dataset = find(rsna)
    assert dataset.notes == ()
    case = dataset.cases[3]
    assert case.path == rsna / "stage_2_train_images" / "image-3.dcm"
    assert (case.kind, case.patient, case.label, case.class_index) == ("dicom", "3", 1, None)
    assert patients(dataset, "test") == {str(i) for i in range(16, 32)}


def test_nih(nih: Path) -> None:
    def more(rows) -> None:
        for i, row in enumerate(rows):
            row |= {"Patient Age": ("58", "414")[i % 2], "Patient Gender": "FM"[i % 2]}

    edit(nih / NIH_LABELS, more)
    first, second = find(nih).cases[:2]
    assert (first.kind, first.patient, first.label, first.view) == ("picture", "100", 0, "PA")
    assert (first.sex, first.age) == ("F", 58)
    assert (second.sex, second.age, second.label) == ("M", None, 1)
    assert [c.label for c in find(nih, target="Edema").cases] == [i % 2 for i in range(32)]


def test_nih_images_in_numbered_folders(nih: Path) -> None:
    """NIH publishes the folders images_001/images to images_012/images."""
    for number in (1, 2):
        (nih / f"images_00{number}" / "images").mkdir(parents=True)
    for i, path in enumerate(sorted((nih / "images").iterdir())):
        path.rename(nih / f"images_00{1 + i % 2}" / "images" / path.name)
    (nih / "images").rmdir()
    assert {case.path.parent.parent.name for case in find(nih).cases} == {
        "images_001", "images_002",
    }  # fmt: skip


def test_lists_of_nih_give_the_split(nih: Path) -> None:
    edit(nih / NIH_LABELS, without("split"))
    names = [f"{i:08d}_000.png" for i in range(32)]
    (nih / "train_val_list.txt").write_text("\n".join(names[8:]), encoding="utf-8")
    (nih / "test_list.txt").write_text("\n".join(names[:8]), encoding="utf-8")
    assert patients(find(nih), "test") == {str(100 + i) for i in range(8)}


@pytest.mark.parametrize("target", ["mel", "Melanoma"])
def test_ham(ham: Path, target: str) -> None:
    dataset = find(ham, target=target)
    assert (dataset.target, dataset.exclusive) == ("melanoma", True)
    assert dataset.outputs == (
        "actinic keratosis", "basal cell carcinoma", "benign keratosis", "dermatofibroma",
        "melanoma", "nevus", "vascular lesion",
    )  # fmt: skip
    assert [case.class_index for case in dataset.cases[:8]] == [0, 1, 2, 3, 4, 5, 6, 0]
    assert [case.label for case in dataset.cases[:8]] == [0, 0, 0, 0, 1, 0, 0, 0]
    case = dataset.cases[1]
    assert (case.kind, case.patient) == ("photograph", "HAM_0000001")
    assert (case.sex, case.age) == ("M", 21)
    assert dataset.cases[0].age is None
    assert dataset.cases[2].sex == ""


@pytest.mark.parametrize("code", HAM_CODES)
def test_every_class_of_ham_can_be_the_target(ham: Path, code: str) -> None:
    cases = find(ham, target=code, share=0.3).cases
    assert [i % 7 for i, case in enumerate(cases) if case.label] == [HAM_CODES.index(code)] * 10


def test_csv_by_its_folder_or_by_its_name(csv_set: Path) -> None:
    dataset = find(csv_set, target="Pleural_Effusion")
    assert dataset.target == "pleural effusion"
    assert {case.kind for case in dataset.cases} == {"dicom", "picture"}
    assert dataset.cases[5].path == csv_set / "files" / "5.png"
    assert dataset.cases[5].patient == "P2"
    (csv_set / "labels.csv").rename(csv_set / "mine.csv")
    assert find(csv_set / "mine.csv", target="pleural effusion").cases == dataset.cases


def test_csv_as_a_spreadsheet_writes_it(csv_set: Path) -> None:
    text = (csv_set / "labels.csv").read_text("utf-8")
    (csv_set / "labels.csv").write_text("\ufeff" + text.replace(",P", ", P"), encoding="utf-8")
    assert find(csv_set).cases[0].patient == "P0"


def test_csv_of_photographs(tmp_path: Path) -> None:
    dataset = find(write_csv_set(tmp_path / "own", kind="photograph"), target="melanoma")
    assert {case.kind for case in dataset.cases} == {"photograph"}
    assert (dataset.outputs, dataset.exclusive) == (("melanoma",), False)
    assert read_radiograph(dataset.cases[0]).pixels.shape == (60, 80, 3)


def test_a_folder_can_be_named_by_its_table(nih: Path) -> None:
    assert find(nih / NIH_LABELS).cases == find(nih).cases


# --- splits ---


def test_validation_is_a_stable_share_of_training_patients(rsna: Path, nih: Path) -> None:
    together = {case.path: case.split for case in find(rsna, nih).cases}
    alone = {case.path: case.split for case in find(nih).cases}
    assert all(together[path] == split for path, split in alone.items())
    everyone = [str(patient) for patient in range(20000)]
    validation = np.array([is_validation(patient, 0.15) for patient in everyone])
    test = np.array([is_test(patient) for patient in everyone])
    assert validation.mean() == pytest.approx(0.15, abs=0.01)
    assert test.mean() == pytest.approx(0.2, abs=0.01)
    assert (validation & test).mean() == pytest.approx(0.03, abs=0.005)


def test_patients_without_a_split_are_placed_by_a_stable_hash(csv_set: Path) -> None:
    dataset = find(csv_set)
    assert patients(dataset, "test") == {p for p in (f"P{i}" for i in range(24)) if is_test(p)}
    assert any("20% are test patients" in note for note in dataset.notes)
    assert not patients(dataset, "test") & patients(dataset, "train")


def test_a_patient_without_a_split_follows_another_table(nih: Path, tmp_path: Path) -> None:
    """Published RSNA data have no splits. NIH's table places the same patients."""
    rsna = write_rsna(tmp_path / "rsna", first_patient=100)
    (rsna / "splits.csv").unlink()
    write_mapping(rsna, {f"image-{i}": f"{100 + i:08d}_009.png" for i in range(32)})
    splits = {case.patient: case.split for case in find(nih).cases}
    for case in find(nih, rsna).cases:
        assert case.split == splits[case.patient]


def test_a_validation_split_of_the_table_is_kept(csv_set: Path) -> None:
    def place(rows) -> None:
        for i, row in enumerate(rows):
            row["split"] = ("train", "validation", "test")[i // 2 % 3]

    edit(csv_set / "labels.csv", place)
    cases = find(csv_set, share=0.9).cases
    assert [case.split for case in cases[:8:2]] == ["train", "validation", "test", "train"]


def test_all_images_of_a_patient_share_a_split(nih: Path) -> None:
    def one_patient(rows) -> None:
        for row in rows[:6]:
            row["Patient ID"] = "7"

    edit(nih / NIH_LABELS, one_patient)
    assert len({case.split for case in find(nih).cases if case.patient == "7"}) == 1


def test_a_patient_in_two_splits_is_an_error_across_folders(tmp_path: Path) -> None:
    rsna = write_rsna(tmp_path / "rsna", first_patient=0)
    nih = write_nih(tmp_path / "nih", first_patient=31)  # RSNA's last, a test patient
    with pytest.raises(DataError, match=r"1 patients .* patient 31 in train and test: the model"):
        find(rsna, nih)


def test_fingerprint_follows_labels_splits_and_classes(ham: Path) -> None:
    cases = find(ham, target="mel").cases
    for change in ({"label": 1}, {"split": "test"}, {"class_index": 3}):
        changed = (replace(cases[0], **change), *cases[1:])
        assert fingerprint(cases) == fingerprint(cases[::-1]) != fingerprint(changed)


# --- RSNA's labels win over NIH's ---


def write_mapping(rsna: Path, images: dict[str, str]) -> None:
    entries = [{"subset_img_id": k, "img_id": v, "orig_labels": []} for k, v in images.items()]
    (rsna / MAPPING).write_text(json.dumps(entries), encoding="utf-8")


def test_rsna_patients_from_the_published_mapping(rsna: Path) -> None:
    (rsna / "splits.csv").unlink()
    write_mapping(rsna, {f"image-{i}": f"{i // 2:08d}_{i:03d}.png" for i in range(32)})
    cases = find(rsna).cases
    assert [case.patient for case in cases[:4]] == ["0", "0", "1", "1"]


def test_rsna_without_any_patients(rsna: Path, nih: Path) -> None:
    (rsna / "splits.csv").unlink()
    assert find(rsna).cases[5].patient == "image-5"
    with pytest.raises(DataError, match=r"needs RSNA's mapping file \(pneumonia-challenge"):
        find(rsna, nih)


@pytest.mark.parametrize("known_from", ["mapping", "column"])
def test_nih_row_is_dropped_if_rsna_has_the_image(
    tmp_path: Path, nih: Path, known_from: str
) -> None:
    rsna = write_rsna(tmp_path / "rsna", first_patient=200)
    names = {f"image-{i}": f"{i:08d}_000.png" for i in range(32)}
    shared = [names["image-0"], names["image-1"], names["image-2"]]
    if known_from == "mapping":
        write_mapping(rsna, {k: v if v in shared else "00000300_000.png" for k, v in names.items()})
    else:

        def add(rows) -> None:
            for row in rows:
                name = names[row["patientId"]]
                row.update(nih_image=name if name in shared else "")

        edit(rsna / "splits.csv", add)
    dataset = find(nih, rsna)
    assert len(dataset.cases) == 61
    assert not {c.path.name for c in dataset.cases if c.source == "NIH"} & set(shared)
    assert dataset.notes == ("3 NIH images are left out: RSNA has labels of radiologists for them",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a list of subset_img_id and img_id"),
        ('[{"subset_img_id": "image-0"}]', "not a list of subset_img_id and img_id"),
        ('[{"subset_img_id": "image-0", "img_id": "x.png"}]', "'x.png' is no file name of NIH"),
        ('[{"subset_img_id": "image-0", "img_id": "00000001_000.png"}]', "lacks 31 images"),
    ],
)
def test_mapping_that_cannot_be_used(rsna: Path, content: str, message: str) -> None:
    (rsna / MAPPING).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        find(rsna)


# --- ground truth ---


def test_boxes_are_read_in_the_model_frame_and_only_for_positives(rsna: Path) -> None:
    negative, positive = find(rsna).cases[:2]
    assert read_truth(negative, geometry(negative)) is None
    region = read_truth(positive, geometry(positive))
    assert region is not None
    expected = np.zeros((48, 48), bool)
    expected[15:33, 10:25] = True  # half of y 30 to 66, x 20 to 50
    assert np.array_equal(region, expected)


def test_two_boxes_are_united(rsna: Path) -> None:
    edit(rsna / RSNA_LABELS, lambda rows: rows.append(rows[1] | {"x": "60.0", "width": "20.0"}))
    case = find(rsna).cases[1]
    region = read_truth(case, geometry(case))
    assert region is not None
    assert region[20].nonzero()[0].tolist() == [*range(10, 25), *range(30, 40)]


def test_the_table_of_boxes_is_read_once_and_again_when_it_changes(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = find(rsna).cases
    frame, reads = geometry(cases[1]), []
    read = layouts.read_boxes
    monkeypatch.setattr(truth, "read_boxes", lambda table: reads.append(table) or read(table))
    for case in cases:
        read_truth(case, frame)
    assert len(reads) == 1
    edit(rsna / RSNA_LABELS, lambda rows: rows[1].update(width="90.0"))
    with pytest.raises(DataError, match="outside the image"):
        read_truth(cases[1], frame)


def test_lesion_masks_are_read_for_every_class(ham: Path) -> None:
    for i, case in enumerate(find(ham, target="mel").cases[:7]):
        region = read_truth(case, geometry(case))
        assert region is not None
        assert region.shape == (48, 48)
        assert region.sum() * (80 / 48) ** 2 == pytest.approx(lesion(i, HAM_CODES[i])[1].sum(), 0.1)
        # The lesion and the skin differ in colour.
        tensor, _ = PREPROCESSING(read_radiograph(case))
        outside = ~region & geometry(case).inside()
        gap = np.abs(tensor[:, region].mean(axis=1) - tensor[:, outside].mean(axis=1)).max()
        assert gap > 0.1


def test_a_lesion_that_touches_the_border_ends_there(ham: Path) -> None:
    case = find(ham, target="mel").cases[0]
    path = ham / "masks" / f"{case.path.stem}_segmentation.png"
    Image.new("L", (80, 60), 255).save(path)
    frame = geometry(case)
    region = read_truth(case, frame)
    assert region is not None
    assert not frame.inside().all()
    assert np.array_equal(region, frame.inside())


def test_lesion_masks_that_are_missing_or_do_not_fit(ham: Path) -> None:
    first, second, third = find(ham, target="mel").cases[:3]
    (ham / "masks" / f"{first.path.stem}_segmentation.png").unlink()
    assert read_truth(first, geometry(first)) is None
    Image.new("L", (80, 61)).save(ham / "masks" / f"{second.path.stem}_segmentation.png")
    with pytest.raises(DataError, match="the mask is 80 x 61, its image 80 x 60"):
        read_truth(second, geometry(second))
    (ham / "masks" / f"{third.path.stem}_segmentation.png").write_bytes(b"no PNG")
    with pytest.raises(DataError, match="cannot be read as a mask"):
        read_truth(third, geometry(third))


def test_an_empty_lesion_mask_and_a_box_of_no_pixel_are_no_ground_truth(
    ham: Path, rsna: Path
) -> None:
    lesion_case = find(ham, target="mel").cases[0]
    Image.new("L", (80, 60)).save(ham / "masks" / f"{lesion_case.path.stem}_segmentation.png")
    assert read_truth(lesion_case, geometry(lesion_case)) is None
    table = rsna / "stage_2_train_labels.csv"
    text = table.read_text("utf-8").replace("30.0,36.0", "0.4,0.4")
    table.write_text(text, encoding="utf-8")
    boxed = next(case for case in find(rsna).cases if case.label)
    assert read_truth(boxed, geometry(boxed)) is None


def test_no_truth_without_boxes_and_masks(nih: Path) -> None:
    case = find(nih).cases[1]
    assert read_truth(case, geometry(case)) is None


def test_training_code_cannot_reach_ground_truth() -> None:
    paths = (ROOT / "trainer").rglob("*.py")
    texts = {path.name: path.read_text("utf-8") for path in paths}
    assert {n for n, text in texts.items() if "read_truth" in text} == {"ground_truth.py"}
    reading = {n for n, text in texts.items() if "read_boxes" in text}
    assert reading == {"ground_truth.py", "layouts.py"}
    reaching = {n for n, text in texts.items() if re.search(r"from \S*\bground_truth import", text)}
    assert reaching == {"ablation.py", "choice.py", "evaluate.py", "prepare.py"}


# --- what is refused ---


def test_unknown_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no labels that are recognised: .*RSNA.*NIH.*HAM10000"):
        find(tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        find(tmp_path / "nowhere")
    with pytest.raises(DataError, match="name a folder of labelled images"):
        find()


def test_same_data_twice(nih: Path, csv_set: Path) -> None:
    with pytest.raises(DataError, match="names the same folder twice"):
        find(nih, nih / ".." / nih.name)
    with pytest.raises(DataError, match="names the same folder twice"):
        find(csv_set, csv_set / "labels.csv")
    (csv_set / "copy.csv").write_bytes((csv_set / "labels.csv").read_bytes())
    with pytest.raises(DataError, match=r"48 images are named twice: .*\.\.\."):
        find(csv_set, csv_set / "copy.csv")


def test_an_image_named_twice_by_a_link(csv_set: Path) -> None:
    table = csv_set / "labels.csv"
    first = next(csv.DictReader(table.read_text("utf-8").splitlines()))
    (csv_set / "link.png").symlink_to(csv_set / first["path"])
    row = ",".join({**first, "path": "link.png"}.values())
    table.write_text(table.read_text("utf-8").rstrip() + f"\n{row}\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 images are named twice"):
        find(csv_set)


def test_a_file_named_by_a_uid_is_dicom(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label,patient_id\n1.2.840.113619.2,1,a\nb.png,0,b\n", encoding="utf-8")
    kinds = [image.kind for image, _ in layouts.read_listing(table, "sick").images]
    assert kinds == ["dicom", "picture"]


def test_missing_images(nih: Path) -> None:
    for i in range(2, 7):
        (nih / "images" / f"{i:08d}_000.png").unlink()
    expected = (
        r"5 of 32 images .* missing: .*2_000\.png, .*3_000\.png, .*4_000\.png, \.\.\.; --skip"
    )
    with pytest.raises(DataError, match=expected):
        find(nih)
    dataset = find(nih, skip_bad=True)
    assert len(dataset.cases) == 27
    assert dataset.notes[0] == "5 missing images are left out"


def test_target_that_a_layout_does_not_have(nih: Path, rsna: Path, ham: Path) -> None:
    with pytest.raises(DataError, match=r"'melanoma' is no NIH label; these are: .*pneumonia"):
        find(nih, target="mel")
    with pytest.raises(DataError, match="labels for 'pneumonia' only, not 'edema'"):
        find(rsna, target="edema")
    with pytest.raises(DataError, match=r"'pneumonia' is no class of HAM10000; .*melanoma"):
        find(ham)


def test_target_that_no_row_has(nih: Path) -> None:
    with pytest.raises(DataError, match="none of the 32 images is labelled 'hernia'"):
        find(nih, target="hernia")


def test_split_that_lacks_a_label(nih: Path) -> None:
    with pytest.raises(DataError, match="validation split has no image with 'pneumonia', of 0"):
        find(nih, share=0.0)

    def all_positive(rows) -> None:
        for row in rows[24:]:
            row["Finding Labels"] = "Pneumonia"

    edit(nih / NIH_LABELS, all_positive)
    with pytest.raises(DataError, match="test split has no image without 'pneumonia', of 8"):
        find(nih)


def test_photographs_and_radiographs_do_not_mix(tmp_path: Path, csv_set: Path, ham: Path) -> None:
    photographs = write_csv_set(tmp_path / "photographs", kind="photograph")
    with pytest.raises(DataError, match=r"photographs \(.*photo.*\) and radiographs \(.*own.*\)"):
        find(csv_set, photographs, target="melanoma")
    with pytest.raises(DataError, match="classes exclude each other"):
        find(ham, photographs, target="melanoma")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("splits.csv", lambda rows: rows.append(rows[0]), "image-0 occurs twice"),
        ("splits.csv", lambda rows: rows.pop(), r"splits\.csv lacks 1 images: image-31"),
        ("splits.csv", lambda rows: rows[0].update(split="dev"), "allowed: train, validation, tes"),
        ("splits.csv", lambda rows: rows[0].update(nih_patient_id="x"), "patient is 'x', not a n"),
        (RSNA_LABELS, lambda rows: rows[0].update(Target="2"), "Target is '2', not 0 or 1"),
        (RSNA_LABELS, lambda rows: rows.append(rows[0] | {"Target": "1"}), "has both labels"),
        (RSNA_LABELS, without("Target"), "lacks the column 'Target'; it has patientId, x, y"),
    ],
)
def test_contradictions_in_rsna_tables(rsna: Path, file: str, change, message: str) -> None:
    edit(rsna / file, change)
    with pytest.raises(DataError, match=message):
        find(rsna)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(rows[0]), "occurs twice"),
        (lambda rows: rows[0].update({"Patient ID": ""}), "NIH patient is '', not a number"),
        (lambda rows: rows[0].update({"Finding Labels": "Edema|Flu"}), "unknown finding 'Flu'"),
        (lambda rows: rows[0].update({"Finding Labels": ""}), "unknown finding ''"),
        (without("Finding Labels"), "lacks the column 'Finding Labels'"),
    ],
)
def test_contradictions_in_nih_tables(nih: Path, change, message: str) -> None:
    edit(nih / NIH_LABELS, change)
    with pytest.raises(DataError, match=message):
        find(nih)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(rows[0]), "occurs twice"),
        (lambda rows: rows[0].update(dx="scc"), "has dx 'scc'; allowed: akiec, bcc"),
        (lambda rows: rows[0].update(lesion_id=""), "has no lesion_id"),
        (lambda rows: rows[0].update(image_id=""), "a row has no image_id"),
        (without("dx"), "lacks the column 'dx'"),
    ],
)
def test_contradictions_in_ham_tables(ham: Path, change, message: str) -> None:
    edit(ham / HAM_LABELS, change)
    with pytest.raises(DataError, match=message):
        find(ham, target="mel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.append(rows[0]), "occurs twice"),
        (lambda rows: rows[0].update(label="yes"), "label is 'yes', not 0 or 1"),
        (lambda rows: rows[0].update(patient_id=""), "has no patient_id"),
        (lambda rows: [row.update(kind="film") for row in rows], "allowed: radiograph, photograph"),
        (lambda rows: [row.update(kind="photograph") for row in rows], "is a DICOM file, not a ph"),
        (without("path"), "lacks the column 'path'"),
    ],
)
def test_contradictions_in_csv_tables(csv_set: Path, change, message: str) -> None:
    edit(csv_set / "labels.csv", change)
    with pytest.raises(DataError, match=message):
        find(csv_set)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"path,label,patient_id\n", "is empty"),
        (b"path,label,patient_id,label\na,1,b,0\n", "names the column 'label' twice"),
        (b"path;label;patient_id\na;1;b\n", "lacks the column 'path'; it has path;label"),
        (b"path,label,patient_id\na,1,b,c\n", "more values than there are columns"),
        (b"path,label,patient_id\na\n", "a has no patient_id"),
        (b"path,label,patient_id\n\xff,1,b\n", "cannot be read"),
    ],
)
def test_files_that_are_no_label_tables(csv_set: Path, content: bytes, message: str) -> None:
    (csv_set / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find(csv_set)


def test_unreadable_and_refused_images_name_the_reason(rsna: Path) -> None:
    path = rsna / "stage_2_train_images" / "image-2.dcm"
    case = find(rsna).cases[2]
    ds = pydicom.dcmread(path)
    ds.BodyPartExamined = "KNEE"
    ds.save_as(path)
    with pytest.raises(DataError, match="not_chest"):
        read_radiograph(case)
    path.write_bytes(b"not DICOM")
    with pytest.raises(DataError, match=r"image-2\.dcm: cannot be read as a radiograph"):
        read_radiograph(case)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[:-500] + bytes(500))
    with pytest.raises(DataError, match=r"image-2\.dcm: cannot be read as a radiograph"):
        read_radiograph(case)


@pytest.mark.parametrize("change", [{"width": "90.0"}, {"y": "-1.0"}, {"height": "0.0"}])
def test_box_outside_the_image(rsna: Path, change: dict[str, str]) -> None:
    edit(rsna / RSNA_LABELS, lambda rows: rows[1].update(change))
    case = find(rsna).cases[1]
    with pytest.raises(DataError, match="outside the image"):
        read_truth(case, geometry(case))


def test_box_without_numbers(rsna: Path) -> None:
    edit(rsna / RSNA_LABELS, lambda rows: rows[1].update(width=""))
    case = find(rsna).cases[1]
    with pytest.raises(DataError, match="image-1 has a box without numbers"):
        read_truth(case, geometry(case))


# --- the real sets ---


def require_disjoint(dataset: Dataset) -> None:
    train, validation, test = (patients(dataset, s) for s in ("train", "validation", "test"))
    assert not train & test
    assert not train & validation
    assert not validation & test


@pytest.mark.realdata
def test_the_real_radiographs(real_data: Path) -> None:
    dataset = find(real_data / "nih-mini", real_data / "rsna-mini", share=0.15)
    assert len(dataset.cases) == 891
    assert [note.partition(" ")[2][:52] for note in dataset.notes] == [
        "patients are in NIH's data and in RSNA's, and which "
    ]
    assert sum(case.split == "test" for case in dataset.cases) == 117
    require_disjoint(dataset)
    boxed = [case for case in dataset.cases if case.source == "RSNA" and case.label]
    assert len(boxed) == 89
    for case in boxed[::10]:
        region = read_truth(case, geometry(case))
        assert region is not None
        assert 0.005 < region.mean() < 0.6
    nih = [case for case in dataset.cases if case.source == "NIH"]
    assert all(case.view in {"AP", "PA"} and case.sex and case.age is not None for case in nih)


@pytest.mark.realdata
@pytest.mark.parametrize("target", ["melanoma", "nevus", "vascular lesion"])
def test_the_real_photographs(real_data: Path, target: str) -> None:
    dataset = find(real_data / "ham10000-mini", target=target, share=0.15)
    assert len(dataset.cases) == 1080
    assert sum(case.split == "test" for case in dataset.cases) == 216
    assert {case.class_index for case in dataset.cases} == set(range(7))
    require_disjoint(dataset)
    darker = []
    for case in dataset.cases[::20]:
        tensor, frame = PREPROCESSING(read_radiograph(case))
        region = read_truth(case, frame)
        assert region is not None
        skin = frame.inside() & ~region
        darker.append(tensor[:, region].mean() < tensor[:, skin].mean())
    assert np.mean(darker) > 0.8
