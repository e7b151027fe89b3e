"""Labelled radiographs from the folders that RSNA 2018 and NIH ChestX-ray14 are published as.

Every image becomes an example through `Radiograph` and `Preprocessing`, the two calls that serve.
Boxes are ground truth for evaluation: they are read by `read_boxes` only, which neither the
classifier nor the explanation module ever sees.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Refused
from nemt_dicom.preprocess import Geometry, Preprocessing
from nemt_dicom.radiograph import Radiograph

Split = Literal["train", "validation", "test"]

RSNA_LABELS = "stage_2_train_labels.csv"
RSNA_IMAGES = "stage_2_train_images"
NIH_LABELS = "Data_Entry_2017_v2020.csv"
NIH_IMAGES = "images"
RSNA_TARGET = "pneumonia"
NIH_TARGETS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One labelled image, not yet read.

    source: "RSNA" or "NIH". patient: NIH's patient number, the same in both. label: 1 where the
    target is present. view: "AP", "PA" or "" where the folder does not say.
    """

    path: Path
    source: Literal["RSNA", "NIH"]
    patient: str
    split: Split
    label: int
    view: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images as the network sees them.

    images: (N, 1, S, S) float32 in [0, 1]. labels: (N,) float32 of 0 and 1.
    """

    cases: tuple[Case, ...]
    images: NDArray[np.float32]
    labels: NDArray[np.float32]
    geometries: tuple[Geometry, ...]

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(N, 1, S, S): False for the black beside the image."""
        return np.stack([geometry.inside()[None] for geometry in self.geometries])

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each image."""
        return tuple(case.patient for case in self.cases)


def find_cases(
    folders: Sequence[Path], *, target: str, validation_share: float
) -> tuple[Case, ...]:
    """All labelled images of several data folders, each told apart by the files it holds.

    A stable share of the training patients, by a hash of the patient, is for validation. Raises
    `DataError` where a folder is of no known layout, lacks a file, has no image with or without
    the target, or where a patient or an image stands in two splits.
    """
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise DataError("the same --data folder is given twice")
    cases: list[Case] = []
    for folder in folders:
        if (folder / RSNA_LABELS).is_file():
            cases += _rsna(folder, target)
        elif (folder / NIH_LABELS).is_file():
            cases += _nih(folder, target)
        else:
            raise DataError(
                f"{folder}: neither RSNA ({RSNA_LABELS}) nor NIH ({NIH_LABELS}) data are here"
            )
    _require_one_split_a_patient(cases)
    missing = [case.path for case in cases if not case.path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} images that the labels name are missing: {missing[0]} ...")
    split = [_with_validation(case, validation_share) for case in cases]
    _require_both_labels(split, target)
    return tuple(split)


def is_validation(patient: str, share: float) -> bool:
    """True for a stable `share` of all patients, whatever other patients there are."""
    digest = hashlib.sha256(f"validation:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def read_radiograph(path: Path) -> Radiograph:
    """The image of a case, by the same code that serves; raises `DataError`."""
    if path.suffix.lower() != ".dcm":
        return Radiograph.from_picture(path)
    try:
        return Radiograph.from_dataset(pydicom.dcmread(path), InputSettings())
    except (Refused, InvalidDicomError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a radiograph: {error}") from error


def load_examples(
    cases: Sequence[Case], preprocessing: Preprocessing, *, done: Callable[[], None]
) -> Examples:
    """Reads and preprocesses every case, in order; `done` is called after each."""

    def load(case: Case) -> tuple[NDArray[np.float32], Geometry]:
        return preprocessing(read_radiograph(case.path))

    images = np.empty((len(cases), 1, preprocessing.size, preprocessing.size), np.float32)
    geometries = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for i, (image, geometry) in enumerate(pool.map(load, cases)):
            images[i] = image
            geometries.append(geometry)
            done()
    return Examples(
        cases=tuple(cases),
        images=images,
        labels=np.array([case.label for case in cases], np.float32),
        geometries=tuple(geometries),
    )


def read_boxes(case: Case, geometry: Geometry) -> NDArray[np.bool_] | None:
    """Ground truth for evaluation: the union of an RSNA case's boxes in the model frame.

    (S, S) bool, or None for a case without boxes. Raises `DataError` where a box leaves the image.
    """
    if case.source != "RSNA" or not case.label:
        return None
    inside = np.zeros((geometry.rows, geometry.columns), np.float32)
    for row in _rows(case.path.parent.parent / RSNA_LABELS, ("patientId", "x", "y")):
        if row["patientId"] != case.path.stem or not row["x"]:
            continue
        x, y = float(row["x"]), float(row["y"])
        right, bottom = x + float(row["width"]), y + float(row["height"])
        if not (0 <= x < right <= geometry.columns and 0 <= y < bottom <= geometry.rows):
            raise DataError(f"{case.path.name}: a box lies outside the image")
        inside[round(y) : round(bottom), round(x) : round(right)] = 1.0
    return geometry.to_model(inside) >= 0.5 if inside.any() else None


def describe(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Images, positives and patients of each split of each source, for card and manifest."""
    table = {}
    for source, split in sorted({(case.source, case.split) for case in cases}):
        chosen = [case for case in cases if (case.source, case.split) == (source, split)]
        table[f"{source} {split}"] = {
            "images": len(chosen),
            "positives": sum(case.label for case in chosen),
            "patients": len({case.patient for case in chosen}),
        }
    return table


def fingerprint(cases: Iterable[Case]) -> str:
    """SHA-256 over name, label and split of every case: which data a bundle was trained on."""
    lines = sorted(f"{c.source} {c.path.name} {c.patient} {c.split} {c.label}" for c in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _rsna(folder: Path, target: str) -> list[Case]:
    """RSNA layout: DICOM files, a row a box, and `splits.csv` with NIH's patient numbers."""
    if target.lower() != RSNA_TARGET:
        raise DataError(f"{folder}: RSNA data have labels for {RSNA_TARGET!r} only, not {target!r}")
    labels: dict[str, int] = {}
    for row in _rows(folder / RSNA_LABELS, ("patientId", "Target")):
        name, label = row["patientId"], _label(row["Target"], folder / RSNA_LABELS)
        if labels.setdefault(name, label) != label:
            raise DataError(f"{folder / RSNA_LABELS}: {name} has both labels")
    splits: dict[str, tuple[str, Split]] = {}
    for row in _rows(folder / "splits.csv", ("patientId", "nih_patient_id", "split")):
        if row["patientId"] in splits:
            raise DataError(f"{folder}/splits.csv: {row['patientId']} stands there twice")
        splits[row["patientId"]] = (row["nih_patient_id"], _split(row["split"], folder))
    unknown = labels.keys() - splits.keys()
    if unknown:
        raise DataError(f"{folder}/splits.csv lacks {len(unknown)} images: {min(unknown)} ...")
    return [
        Case(
            path=folder / RSNA_IMAGES / f"{name}.dcm",
            source="RSNA",
            patient=splits[name][0],
            split=splits[name][1],
            label=label,
            view="",
        )
        for name, label in labels.items()
    ]


def _nih(folder: Path, target: str) -> list[Case]:
    """NIH ChestX-ray14 layout with an added column `split`."""
    names = {name.lower(): name for name in NIH_TARGETS}
    if target.lower() not in names:
        raise DataError(f"{folder}: {target!r} is no NIH label; allowed: {', '.join(NIH_TARGETS)}")
    name = names[target.lower()]
    cases: dict[str, Case] = {}
    columns = ("Image Index", "Finding Labels", "Patient ID", "split")
    for row in _rows(folder / NIH_LABELS, columns):
        index = row["Image Index"]
        if index in cases:
            raise DataError(f"{folder / NIH_LABELS}: {index} stands there twice")
        cases[index] = Case(
            path=folder / NIH_IMAGES / index,
            source="NIH",
            patient=row["Patient ID"],
            split=_split(row["split"], folder),
            label=int(name in row["Finding Labels"].split("|")),
            view=row.get("View Position") or "",
        )
    return list(cases.values())


def _rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty")
    absent = [column for column in needed if column not in rows[0]]
    if absent:
        raise DataError(f"{path} lacks the column {absent[0]!r}")
    return rows


def _label(value: str, path: Path) -> int:
    if value not in {"0", "1"}:
        raise DataError(f"{path}: Target is {value!r}, not 0 or 1")
    return int(value)


def _split(value: str, folder: Path) -> Split:
    if value == "train":
        return "train"
    if value == "test":
        return "test"
    raise DataError(f"{folder}: split is {value!r}; allowed: train, test")


def _with_validation(case: Case, share: float) -> Case:
    if case.split != "train" or not is_validation(case.patient, share):
        return case
    return Case(**{**case.__dict__, "split": "validation"})


def _require_one_split_a_patient(cases: Sequence[Case]) -> None:
    splits: dict[str, str] = {}
    crossing = {c.patient for c in cases if splits.setdefault(c.patient, c.split) != c.split}
    if crossing:
        raise DataError(
            f"{len(crossing)} patients stand in both the training and the test split, "
            f"patient {min(crossing)} for one: a model would be tested on whom it has seen"
        )


def _require_both_labels(cases: Sequence[Case], target: str) -> None:
    for split in ("train", "validation", "test"):
        labels = {case.label for case in cases if case.split == split}
        if labels != {0, 1}:
            raise DataError(f"the {split} split lacks images with or without {target!r}")
