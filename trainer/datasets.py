"""Labelled images from data folders: recognised, placed in splits by patient, read, checked.

Every image becomes an example through `Radiograph` and `Preprocessing`, the two calls that serve.
Boxes and lesion masks are ground truth for evaluation: they are read by `read_truth` only, which
neither the classifier nor the explanation module ever sees.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.errors import InvalidDicomError

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Refused
from nemt_dicom.preprocess import Geometry
from nemt_dicom.radiograph import Radiograph

from .layouts import (
    ABNORMAL,
    RSNA_LABELS,
    Labelled,
    Listing,
    canonical,
    find_table,
    read_boxes,
    read_listing,
)
from .splits import TEST_SHARE, place_patients
from .tables import SPLITS, Split

SKIP_HINT = "--skip-bad to go on without them"
HAM_MASKS = ("masks", "HAM10000_segmentations_lesion_tschandl")

_UNREADABLE = (
    Refused, InvalidDicomError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError,
    NotImplementedError,
)  # fmt: skip
"""What pydicom raises for a damaged file, and the refusals."""


@dataclass(frozen=True, kw_only=True)
class Case(Labelled):
    """One labelled image in its split, not yet read."""

    split: Split


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All images of a run.

    target: the canonical name of the label to explain. outputs: what a classifier of these
    answers: the target and then the auxiliary labels, or all classes where they exclude each other
    (`exclusive`: softmax instead of sigmoid). notes: what was left out and why, and
    what is in doubt.
    """

    cases: tuple[Case, ...]
    target: str
    outputs: tuple[str, ...]
    exclusive: bool
    notes: tuple[str, ...]


def find_cases(
    folders: Sequence[Path],
    *,
    target: str,
    validation_share: float,
    auxiliary: Sequence[str] = (),
    skip_bad: bool = False,
) -> Dataset:
    """All labelled images of several data folders, each told apart by the table it holds.

    Patients are placed in splits by the tables, those whom no table places by a stable hash. A
    stable share of the training patients is for validation, unless a table has a validation split
    of its own. auxiliary: further labels to answer, where any image knows them. skip_bad: missing
    images are left out, with a note, instead of an error.

    Raises `DataError` where a folder is of no known layout, lacks a file or contradicts itself or
    another, where a patient is in two splits, or a split has no image with or without the target.
    """
    target = canonical(target)
    tables = [find_table(folder) for folder in folders]
    if len({table.resolve() for table in tables}) != len(tables):
        raise DataError("the same --data folder is given twice")
    listings = [read_listing(table, target) for table in tables]
    _require_one_task(tables, listings)
    notes: list[str] = []
    listings = [_without_nih_twins(listing, listings, notes) for listing in listings]
    _require_images_once(listings)
    splits = place_patients(listings, validation_share)
    images = [image for listing in listings for image, _ in listing.images]
    there = _existing(images, notes, skip_bad=skip_bad)
    cases = tuple(Case(**vars(image), split=splits[image.patient]) for image in there)
    if any(split is None for listing in listings for _, split in listing.images):
        notes.append(
            f"patients whom no table places in a split: {TEST_SHARE:.0%} are test patients, chosen "
            "by a stable hash"
        )
    _require_both_labels(cases, target)
    notes += _doubts(listings)
    classes = listings[0].outputs
    further = [
        name
        for name in dict.fromkeys(canonical(name) for name in auxiliary)
        if name != target and any(name in case.findings for case in cases)
    ]
    if absent := {canonical(name) for name in auxiliary} - {*further, target, ABNORMAL}:
        raise DataError(f"no image knows the auxiliary label {', '.join(sorted(absent))}")
    return Dataset(
        cases=cases,
        target=target,
        outputs=classes if len(classes) > 1 else (target, *further),
        exclusive=len(classes) > 1,
        notes=tuple(notes),
    )


def read_radiograph(case: Case) -> Radiograph:
    """The image of a case, by the same code that serves; raises `DataError`."""
    if case.kind == "photograph":
        return Radiograph.from_photograph(case.path)
    if case.kind == "picture":
        return Radiograph.from_picture(case.path)
    try:
        return Radiograph.from_dataset(pydicom.dcmread(case.path), InputSettings())
    except _UNREADABLE as error:
        raise DataError(f"{case.path}: cannot be read as a radiograph: {error}") from error


def read_truth(case: Case, geometry: Geometry) -> NDArray[np.bool_] | None:
    """Ground truth for evaluation, in the model frame: RSNA's boxes, HAM10000's lesion.

    (S, S) bool: the union of a positive's boxes, or the lesion whatever its class; None for a case
    without. Raises `DataError` where it does not fit the image.
    """
    if case.source == "RSNA":
        source = _boxes_mask(case, geometry)
    elif case.source == "HAM10000":
        source = _lesion_mask(case, geometry)
    else:
        return None
    return None if source is None else geometry.to_model(source) >= 0.5


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
    lines = sorted(
        f"{c.source} {c.path.name} {c.patient} {c.split} {c.label}"
        + ("" if c.class_index is None else f" {c.class_index}")
        for c in cases
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def name_few(names: Sequence[str], separator: str = ", ") -> str:
    """The first three, and a sign that there are more."""
    return separator.join(names[:3]) + (f"{separator}..." if len(names) > 3 else "")


@lru_cache(maxsize=4)
def _boxes(table: Path, _modified: int) -> dict[str, list[tuple[float, float, float, float]]]:
    return read_boxes(table)


def _boxes_mask(case: Case, geometry: Geometry) -> NDArray[np.float32] | None:
    table = case.path.parent.parent / RSNA_LABELS
    boxes = _boxes(table, table.stat().st_mtime_ns).get(case.path.stem, [])
    if not boxes:
        return None
    inside = np.zeros((geometry.rows, geometry.columns), np.float32)
    for x, y, right, bottom in boxes:
        if not (0 <= x < right <= geometry.columns and 0 <= y < bottom <= geometry.rows):
            raise DataError(f"{case.path.name}: a box lies outside the image")
        inside[round(y) : round(bottom), round(x) : round(right)] = 1.0
    return inside


def _lesion_mask(case: Case, geometry: Geometry) -> NDArray[np.float32] | None:
    name = f"{case.path.stem}_segmentation.png"
    places = (case.path.parent.parent / folder / name for folder in HAM_MASKS)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as a mask: {error}") from error
    if mask.shape != (geometry.rows, geometry.columns):
        raise DataError(
            f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image "
            f"{geometry.columns} x {geometry.rows}"
        )
    return mask.astype(np.float32)


def _require_one_task(tables: Sequence[Path], listings: Sequence[Listing]) -> None:
    """One kind of image and one kind of label in a run, and patients that can be compared."""
    if not listings:
        raise DataError("no --data folder is given")
    photographs = {
        image.kind == "photograph": table
        for table, listing in zip(tables, listings, strict=True)
        for image, _ in listing.images
    }
    if len(photographs) > 1:
        raise DataError(
            f"photographs ({photographs[True]}) and radiographs ({photographs[False]}) cannot be "
            "mixed in one run"
        )
    if len({listing.outputs for listing in listings}) > 1:
        raise DataError(
            "data whose classes exclude each other (HAM10000) and data with one label cannot be "
            "mixed in one run"
        )
    unknown = [t for t, found in zip(tables, listings, strict=True) if not found.patients_known]
    if unknown and any(image.source == "NIH" for found in listings for image, _ in found.images):
        raise DataError(
            f"{unknown[0].parent}: RSNA's images are NIH's, but of which patients is not known "
            "here; with NIH data beside it this folder needs RSNA's mapping file "
            "(pneumonia-challenge-dataset-mappings_2018.json) or splits.csv"
        )


def _doubts(listings: Sequence[Listing]) -> list[str]:
    """What the tables do not tell, and the reader of a result has to know."""
    found = []
    if not all(listing.patients_known for listing in listings):
        found.append(
            "RSNA's images are taken for one patient each, for which are the same is not known "
            "here: a patient may be in two splits. RSNA's mapping file "
            "(pneumonia-challenge-dataset-mappings_2018.json) or splits.csv tells"
        )
    nih, rsna = (
        {image.patient for given in listings for image, _ in given.images if image.source == source}
        for source in ("NIH", "RSNA")
    )
    if nih & rsna and not any(listing.nih_images for listing in listings):
        found.append(
            f"{len(nih & rsna)} patients are in NIH's data and in RSNA's, and which of the images "
            "are the same is not known here: some may be in with both labels, in one split"
        )
    return found


def _without_nih_twins(listing: Listing, listings: Sequence[Listing], notes: list[str]) -> Listing:
    """`listing` without NIH's rows of images that RSNA's radiologists labelled anew."""
    twins = frozenset[str]().union(*(found.nih_images for found in listings))
    kept = tuple(
        (image, split)
        for image, split in listing.images
        if not (image.source == "NIH" and image.path.name in twins)
    )
    dropped = len(listing.images) - len(kept)
    if dropped:
        notes.append(f"{dropped} NIH images are left out: RSNA has labels of radiologists for them")
    return replace(listing, images=kept)


def _require_images_once(listings: Sequence[Listing]) -> None:
    paths = Counter(image.path.absolute() for found in listings for image, _ in found.images)
    twice = sorted(str(path) for path, count in paths.items() if count > 1)
    if twice:
        raise DataError(f"{len(twice)} images are named by two tables: {name_few(twice)}")


def _existing(images: Sequence[Labelled], notes: list[str], *, skip_bad: bool) -> list[Labelled]:
    there = [image for image in images if image.path.is_file()]
    missing = sorted({str(image.path) for image in images} - {str(i.path) for i in there})
    if missing and not skip_bad:
        raise DataError(
            f"{len(missing)} of {len(images)} images that the labels name are missing: "
            f"{name_few(missing)}; {SKIP_HINT}"
        )
    if missing:
        notes.append(f"{len(missing)} missing images are left out: {name_few(missing)}")
    return there


def _require_both_labels(cases: Sequence[Case], target: str) -> None:
    if not any(case.label for case in cases):
        raise DataError(f"none of the {len(cases)} images is labelled {target!r}")
    for split in SPLITS:
        labels = [case.label for case in cases if case.split == split]
        for label, word in ((1, "with"), (0, "without")):
            if label not in labels:
                raise DataError(
                    f"the {split} split has no image {word} {target!r}, of {len(labels)} images"
                )
