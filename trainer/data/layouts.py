"""Reads the tables of one data folder: RSNA 2018, NIH ChestX-ray14, HAM10000 or a plain CSV file.

The name of the label table tells the layout. listings.py puts several folders together and looks
for contradictions between them. splits.py places the patients in splits.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nemt_dicom.errors import DataError

from .labelled import Labelled, Listing
from .tables import (
    Split,
    read_age,
    read_label,
    read_nih_patient,
    read_sex,
    read_split,
    read_table,
    require_all,
    required,
    rows_by_name,
)

RSNA_LABELS = "stage_2_train_labels.csv"
RSNA_IMAGES = "stage_2_train_images"
RSNA_CLASSES = "stage_2_detailed_class_info.csv"
RSNA_SPLITS = "splits.csv"
RSNA_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
RSNA_TARGET = "pneumonia"
NIH_LABELS = "Data_Entry_2017_v2020.csv"
NIH_TARGETS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
NIH_NEGATIVE = "No Finding"
HAM_LABELS = "HAM10000_metadata.csv"
HAM_CLASSES = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular lesion",
}
CSV_LABELS = "labels.csv"
KINDS = {RSNA_LABELS: "dicom", NIH_LABELS: "picture", HAM_LABELS: "photograph"}
"""The kind of the images in a layout. A plain CSV table gives the kind of each image."""

ABNORMAL = "abnormal"
"""A finding that RSNA and NIH both know: 0 for "Normal" (RSNA) and "No Finding" (NIH), else 1."""
ALL = "all"
"""An auxiliary label of this name means: every finding that any image has."""


def canonical(target: str) -> str:
    """A label in lower case, with spaces for underscores, and a name for a HAM10000 code."""
    name = " ".join(target.lower().replace("_", " ").split())
    return HAM_CLASSES.get(name, name)


def file_name(name: str) -> str:
    """`name` as part of a file name: a hyphen replaces each character but letters and digits."""
    return "".join(c if c.isalnum() else "-" for c in name)


def find_table(data: Path) -> Path:
    """The label table of a data folder. If `data` is itself a CSV file, that file.

    Raises `DataError` if the folder does not exist or has no known label table.
    """
    if data.is_file() and data.suffix.lower() == ".csv":
        return data
    for name in (*_READERS, CSV_LABELS):
        if (data / name).is_file():
            return data / name
    if not data.exists():
        raise DataError(f"{data} does not exist: name an existing folder with --data")
    raise DataError(
        f"{data} holds no labels that are recognised: {RSNA_LABELS} (RSNA 2018), {NIH_LABELS} "
        f"(NIH ChestX-ray14), {HAM_LABELS} (HAM10000) or {CSV_LABELS} (path,label,patient_id). "
        "Name such a folder with --data, or a .csv file with these three columns"
    )


def read_listing(table: Path, target: str) -> Listing:
    """Reads the folder of a label table.

    table: the label table, see `find_table`.
    target: canonical name of the label to explain.

    Raises `DataError` if a table is damaged, contradicts itself or does not know the target.
    """
    return _READERS.get(table.name, _read_csv)(table, target)


def read_boxes(table: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """The boxes of RSNA's label table, by image name; only images with boxes.

    A box is (left, top, right, bottom): its edges in pixels of the source image. Raises `DataError`
    if a box has no numbers.
    """
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in read_table(table, ("patientId", "x", "y", "width", "height")):
        if not row["x"]:
            continue
        try:
            x, y, width, height = (float(row[name]) for name in ("x", "y", "width", "height"))
        except ValueError as error:
            raise DataError(f"{table}: {row['patientId']} has a box without numbers") from error
        boxes.setdefault(row["patientId"], []).append((x, y, x + width, y + height))
    return boxes


def _read_rsna(table: Path, target: str) -> Listing:
    """RSNA 2018: DICOM files; one row for each box.

    `splits.csv` or the mapping file of RSNA tells which patients of NIH the images show.
    """
    folder = table.parent
    if target != RSNA_TARGET:
        raise DataError(f"{folder}: RSNA data have labels for {RSNA_TARGET!r} only, not {target!r}")
    labels: dict[str, int] = {}
    for row in read_table(table, ("patientId", "Target")):
        name, label = row["patientId"], read_label(row["Target"], table, "Target")
        if labels.setdefault(name, label) != label:
            raise DataError(f"{table}: {name} has both labels, 0 and 1")
    nih = _rsna_mapping(folder / RSNA_MAPPING, labels)
    patients = {name: str(int(image.partition("_")[0])) for name, image in nih.items()}
    splits: dict[str, Split | None] = {}
    if (folder / RSNA_SPLITS).is_file():
        rows = rows_by_name(folder / RSNA_SPLITS, ("patientId", "nih_patient_id", "split"), labels)
        splits = {n: read_split(row["split"], folder / RSNA_SPLITS) for n, row in rows.items()}
        patients = {n: read_nih_patient(row["nih_patient_id"], n) for n, row in rows.items()}
        nih |= {n: row["nih_image"] for n, row in rows.items() if row.get("nih_image")}
    abnormal = _rsna_abnormal(folder / RSNA_CLASSES, labels)
    images = [
        Labelled(
            path=folder / RSNA_IMAGES / f"{name}.dcm",
            source="RSNA",
            kind="dicom",
            patient=patients.get(name, name),
            label=label,
            findings=abnormal.get(name, {}),
        )
        for name, label in labels.items()
    ]
    return Listing(
        images=tuple((image, splits.get(image.path.stem)) for image in images),
        outputs=(target,),
        nih_images=frozenset(nih.values()),
        patients_known=bool(patients),
    )


def _rsna_abnormal(path: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """The finding `ABNORMAL` of each image, from the detailed classes; {} without the file."""
    if not path.is_file():
        return {}
    classes = {row["patientId"]: row["class"] for row in read_table(path, ("patientId", "class"))}
    return {n: {ABNORMAL: int(classes[n] != "Normal")} for n in require_all(names, classes, path)}


def _rsna_mapping(path: Path, needed: Iterable[str]) -> dict[str, str]:
    """The NIH file name of every RSNA image, from RSNA's mapping file; {} without the file."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        mapping = {str(entry["subset_img_id"]): str(entry["img_id"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a list of subset_img_id and img_id ({error!r})") from error
    invalid = [image for image in mapping.values() if not image.partition("_")[0].isdecimal()]
    if invalid:
        raise DataError(f"{path}: {invalid[0]!r} is no file name of NIH, such as 00000013_005.png")
    return {name: mapping[name] for name in require_all(needed, mapping, path)}


def _read_nih(table: Path, target: str) -> Listing:
    """NIH ChestX-ray14: PNG files; one field holds all findings. A column `split` is optional."""
    names = {canonical(name): name for name in NIH_TARGETS}
    if target not in names:
        raise DataError(
            f"{table.parent}: {target!r} is no NIH label; these are: {', '.join(names)}"
        )
    rows = rows_by_name(table, ("Image Index", "Finding Labels", "Patient ID"))
    files = _files(table.parent, ("images", "images_*/images"))
    lists = _nih_lists(table.parent)
    images: list[tuple[Labelled, Split | None]] = []
    for name, row in rows.items():
        findings = set(row["Finding Labels"].split("|"))
        unknown = findings - {*NIH_TARGETS, NIH_NEGATIVE}
        if unknown:
            raise DataError(f"{table}: {name} has the unknown finding {min(unknown)!r}")
        image = Labelled(
            path=files.get(name, table.parent / "images" / name),
            source="NIH",
            kind="picture",
            patient=read_nih_patient(row["Patient ID"], name),
            label=int(names[target] in findings),
            findings={ABNORMAL: int(NIH_NEGATIVE not in findings)}
            | {known: int(name in findings) for known, name in names.items()},
            mined=True,
            view=row.get("View Position", ""),
            sex=read_sex(row.get("Patient Gender", "")),
            age=read_age(row.get("Patient Age", "")),
        )
        split = read_split(row["split"], table) if "split" in row else lists.get(name)
        images.append((image, split))
    return Listing(images=tuple(images), outputs=(target,))


def _nih_lists(folder: Path) -> dict[str, Split]:
    """The split that NIH published, by file name; {} unless its two lists lie beside the table."""
    lists: dict[str, Split] = {}
    for name, split in (("train_val_list.txt", "train"), ("test_list.txt", "test")):
        if (folder / name).is_file():
            names = (folder / name).read_text(encoding="utf-8").split()
            lists |= dict.fromkeys(names, read_split(split, folder / name))
    return lists


def _read_ham(table: Path, target: str) -> Listing:
    """HAM10000: photographs of seven exclusive classes. All images of a lesion share a split."""
    codes = list(HAM_CLASSES)
    outputs = tuple(HAM_CLASSES.values())
    if target not in outputs:
        raise DataError(
            f"{table.parent}: {target!r} is no class of HAM10000; these are: {', '.join(outputs)}"
        )
    rows = rows_by_name(table, ("image_id", "lesion_id", "dx"))
    files = _files(table.parent, ("images", "HAM10000_images_part_*"))
    images: list[tuple[Labelled, Split | None]] = []
    for name, row in rows.items():
        if row["dx"] not in codes:
            raise DataError(f"{table}: {name} has dx {row['dx']!r}; allowed: {', '.join(codes)}")
        index = codes.index(row["dx"])
        image = Labelled(
            path=files.get(f"{name}.jpg", table.parent / "images" / f"{name}.jpg"),
            source="HAM10000",
            kind="photograph",
            patient=required(row["lesion_id"], table, f"{name} has no lesion_id"),
            label=int(outputs[index] == target),
            class_index=index,
            sex=read_sex(row.get("sex", "")),
            age=read_age(row.get("age", "")),
        )
        images.append((image, read_split(row["split"], table) if "split" in row else None))
    return Listing(images=tuple(images), outputs=outputs)


def _read_csv(table: Path, target: str) -> Listing:
    """A plain table of path, label and patient_id. Columns `split` and `kind` are optional."""
    images: list[tuple[Labelled, Split | None]] = []
    for name, row in rows_by_name(table, ("path", "label", "patient_id")).items():
        path = table.parent / name
        kind = row.get("kind") or "radiograph"
        if kind not in {"radiograph", "photograph"}:
            raise DataError(f"{table}: kind is {kind!r}; allowed: radiograph, photograph")
        suffix = path.suffix.lower()  # a file named by a UID ends in digits
        dicom = suffix in {".dcm", ".dicom", ""} or suffix[1:].isdigit()
        if dicom and kind == "photograph":
            raise DataError(f"{table}: {name} is a DICOM file, not a photograph")
        image = Labelled(
            path=path,
            source="CSV",
            kind="photograph" if kind == "photograph" else "dicom" if dicom else "picture",
            patient=required(row["patient_id"], table, f"{name} has no patient_id"),
            label=read_label(row["label"], table, "label"),
        )
        images.append((image, read_split(row["split"], table) if "split" in row else None))
    return Listing(images=tuple(images), outputs=(target,))


_READERS: dict[str, Callable[[Path, str], Listing]] = {
    RSNA_LABELS: _read_rsna,
    NIH_LABELS: _read_nih,
    HAM_LABELS: _read_ham,
}


def _files(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """The files of all subfolders that match a pattern: path by file name.

    One listing of each folder is much faster than one look for each image.
    """
    parents = sorted(parent for pattern in patterns for parent in folder.glob(pattern))
    return {
        name: parent / name for parent in parents if parent.is_dir() for name in os.listdir(parent)
    }
