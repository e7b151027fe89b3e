"""Small data sets in every layout that the trainer reads, drawn by formula, of nobody."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

SIDE = 96


def chest(seed: int, positive: bool) -> NDArray[np.float64]:
    """(96, 96) in [0, 1]: two dark lungs; a positive has a bright patch in one of them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    scene = 0.75 + 0.03 * random.standard_normal((SIDE, SIDE))
    for centre in (30, 66):
        scene -= 0.5 * np.exp(-((((x - centre) / 14) ** 2 + ((y - 48) / 30) ** 2) ** 3))
    if positive:
        centre, height = random.choice([30, 66]), random.integers(35, 60)
        scene += 0.5 * np.exp(-(((x - centre) / 9) ** 2 + ((y - height) / 9) ** 2))
    return np.clip(scene, 0, 1)


def radiograph(seed: int, positive: bool) -> Dataset:
    """A CR instance of `chest`, 12 bits, MONOCHROME1 with a window."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID = f"2.25.{1000 + seed}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.{2000 + seed}", f"2.25.{3000 + seed}"
    ds.PatientName, ds.PatientID = "SYNTHETIC", f"S{seed}"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", "PA"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1"
    ds.Rows, ds.Columns = SIDE, SIDE
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    ds.PixelData = np.rint((1 - chest(seed, positive)) * 4095).astype("<u2").tobytes()
    return ds


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_rsna(folder: Path, *, count: int = 32, first_patient: int = 0) -> Path:
    """Every second image is positive with one box; the last half is the test split."""
    (folder / "stage_2_train_images").mkdir(parents=True)
    labels: list[dict[str, object]] = []
    splits: list[dict[str, object]] = []
    for i in range(count):
        positive, name = i % 2 == 1, f"image-{i}"
        radiograph(i, positive).save_as(
            folder / "stage_2_train_images" / f"{name}.dcm", enforce_file_format=True
        )
        box = {"x": 20.0, "y": 30.0, "width": 30.0, "height": 36.0}
        empty = dict.fromkeys(box, "")
        labels.append({"patientId": name, **(box if positive else empty), "Target": int(positive)})
        splits.append(
            {
                "patientId": name,
                "nih_patient_id": first_patient + i,
                "split": "train" if i < count // 2 else "test",
            }
        )
    write_csv(folder / "stage_2_train_labels.csv", labels)
    write_csv(folder / "splits.csv", splits)
    return folder


def write_nih(folder: Path, *, count: int = 32, first_patient: int = 100) -> Path:
    """Every second image is labelled Pneumonia; the last quarter is the test split."""
    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for i in range(count):
        positive, name = i % 2 == 1, f"{i:08d}_000.png"
        grey = np.rint(chest(500 + i, positive) * 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / name)
        rows.append(
            {
                "Image Index": name,
                "Finding Labels": "Edema|Pneumonia" if positive else "No Finding",
                "Patient ID": first_patient + i,
                "View Position": "PA",
                "split": "train" if i < 3 * count // 4 else "test",
            }
        )
    write_csv(folder / "Data_Entry_2017_v2020.csv", rows)
    return folder


HAM_CODES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def lesion(seed: int, code: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A photograph (60, 80, 3) of a spot on skin, its colour by class, and its mask (60, 80)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:60, 0:80]
    row, column = random.integers(22, 38), random.integers(30, 50)
    mask = ((y - row) / 14) ** 2 + ((x - column) / 18) ** 2 <= 1
    skin = np.array([225, 180, 160]) + random.integers(-12, 12, (60, 80, 3))
    hue = np.random.default_rng(HAM_CODES.index(code)).integers(20, 150, 3)
    return np.where(mask[..., None], hue, skin).astype(np.uint8), mask


def write_ham(folder: Path, *, count: int = 70, first_lesion: int = 0) -> Path:
    """The seven classes in turn, a lesion an image; the last fifth is the test split."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for i in range(count):
        code, name = HAM_CODES[i % 7], f"ISIC_{i:07d}"
        image, mask = lesion(i, code)
        Image.fromarray(image).save(folder / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{name}_segmentation.png")
        rows.append(
            {
                "lesion_id": f"HAM_{first_lesion + i:07d}",
                "image_id": name,
                "dx": code,
                "age": f"{20 + i % 60}.0" if i % 5 else "",
                "sex": ("female", "male", "unknown")[i % 3],
                "split": "train" if i < 4 * count // 5 else "test",
            }
        )
    write_csv(folder / "HAM10000_metadata.csv", rows)
    return folder


def write_csv_set(folder: Path, *, count: int = 48, kind: str = "radiograph") -> Path:
    """Every second image is positive, two images a patient, no split: pictures, DICOM or photos."""
    (folder / "files").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for i in range(count):
        positive = i % 2 == 1
        if kind == "photograph":
            path = folder / "files" / f"{i}.jpg"
            Image.fromarray(lesion(i, "mel" if positive else "nv")[0]).save(path, quality=95)
        elif i % 3:
            path = folder / "files" / f"{i}.png"
            grey = np.rint(chest(900 + i, positive) * 255).astype(np.uint8)
            Image.fromarray(grey).save(path)
        else:
            path = folder / "files" / f"{i}.dcm"
            radiograph(900 + i, positive).save_as(path, enforce_file_format=True)
        rows.append(
            {"path": f"files/{path.name}", "label": int(positive), "patient_id": f"P{i // 2}"}
            | ({"kind": kind} if kind != "radiograph" else {})
        )
    write_csv(folder / "labels.csv", rows)
    return folder
