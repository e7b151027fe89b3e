"""Finds the labelled images of data folders, places them in splits and reads them.

Every image becomes an example through `Radiograph` and `Preprocessing`, as in the service. Boxes
and lesion masks are ground truth for evaluation and not part of a case: see ground_truth.py.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Refused
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.intake.uid import UNREADABLE

from .labelled import Labelled
from .layouts import ABNORMAL, ALL, canonical
from .listings import (
    doubts,
    existing_images,
    name_few,
    read_listings,
    require_images_of_kind,
    require_kind,
)
from .splits import TEST_SHARE, place_patients
from .tables import SPLITS, Split

__all__ = [
    "OF_NIH",
    "Case",
    "Dataset",
    "describe",
    "find_cases",
    "find_cases_to_evaluate",
    "fingerprint",
    "name_few",
    "read_radiograph",
    "require_both_labels",
]

OF_NIH = frozenset({"NIH", "RSNA"})
"""Sources whose images show patients of NIH."""
ALL_EVALUATED = "no table places a patient in a split: all images are evaluated"
HASH_DECIDES = (
    "no table places a patient in a split, and the bundle was trained on such data: a stable hash "
    f"tells the splits, {TEST_SHARE:.0%} are test patients"
)


@dataclass(frozen=True, kw_only=True)
class Case(Labelled):
    """One labelled image in its split. Its file is not read yet."""

    split: Split


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All images of a run.

    target: canonical name of the label to explain.
    outputs: outputs of a classifier for these images. The target and the auxiliary labels, or all
        classes if they exclude each other.
    exclusive: whether the classes exclude each other: softmax instead of sigmoid.
    notes: sentences about images that are left out, and about doubts.
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
    """All labelled images of data folders, each in its split.

    The tables place patients in splits. A stable hash places all other patients.

    folders: data folders; the label table of each tells its layout, see layouts.py.
    target: the label to explain.
    validation_share: share of the training patients for validation, from 0 to 1. A table with a
        validation split keeps that split.
    auxiliary: further labels for the classifier to answer, or `ALL`.
    skip_bad: missing images are left out with a note. Otherwise they are an error.

    Raises `DataError`
    - if a folder has no known layout, lacks a file, or contradicts itself or another folder,
    - if a patient is in two splits,
    - if no image knows an auxiliary label,
    - if a split has no image with the target, or none without it.
    """
    target = canonical(target)
    listings, notes = read_listings(folders, target)
    splits = place_patients(listings, validation_share)
    images = existing_images(listings, notes, skip_bad=skip_bad)
    cases = tuple(Case(**vars(image), split=splits[image.patient]) for image in images)
    if any(split is None for listing in listings for _, split in listing.images):
        notes.append(
            "some patients are in no split of a table: a stable hash places them, "
            f"{TEST_SHARE:.0%} are test patients"
        )
    require_both_labels(cases, target)
    notes += doubts(listings)
    classes = listings[0].outputs
    labels = _auxiliary_labels(cases, target, auxiliary)
    return Dataset(
        cases=cases,
        target=target,
        outputs=classes if len(classes) > 1 else (target, *labels),
        exclusive=len(classes) > 1,
        notes=tuple(notes),
    )


def find_cases_to_evaluate(
    folders: Sequence[Path],
    *,
    target: str,
    split: Split,
    photographs: bool,
    validation_share: float,
    trained_on: Collection[str],
    skip_bad: bool = False,
) -> Dataset:
    """All labelled images of data folders, to evaluate a bundle on one split.

    If no table places a patient in a split, all images count as images of `split`. If the bundle
    was trained on such data, the stable hash tells instead which patients were held out.

    folders, target, validation_share, skip_bad: as for `find_cases`.
    split: the split to evaluate.
    photographs: whether the bundle explains photographs, not radiographs.
    trained_on: sources of the images that the bundle was trained on.

    Raises `DataError`
    - as `find_cases` does for folders and patients,
    - if the images are of the other kind, or `split` has none,
    - if the hash must tell who was held out, but a source of `trained_on` is missing.
    """
    target = canonical(target)
    require_kind(folders, photographs=photographs)
    listings, notes = read_listings(folders, target)
    require_images_of_kind(listings, photographs=photographs)
    splits = place_patients(listings, validation_share)
    images = existing_images(listings, notes, skip_bad=skip_bad)
    if not any(placed for listing in listings for _, placed in listing.images):
        sources = {image.source for image in images}
        if _are_new(sources, trained_on):
            splits = dict.fromkeys(splits, split)
            notes.append(ALL_EVALUATED)
        else:
            _require_all_sources(sources, trained_on)
            notes.append(HASH_DECIDES)
    cases = tuple(Case(**vars(image), split=splits[image.patient]) for image in images)
    if not any(case.split == split for case in cases):
        present = sorted({case.split for case in cases})
        raise DataError(f"no image is in the split {split!r}; there are: {', '.join(present)}")
    return Dataset(
        cases=cases,
        target=target,
        outputs=listings[0].outputs,
        exclusive=len(listings[0].outputs) > 1,
        notes=(*notes, *doubts(listings)),
    )


def read_radiograph(case: Case) -> Radiograph:
    """Reads the image of a case with the code of the service. Raises `DataError`."""
    if case.kind == "photograph":
        return Radiograph.from_photograph(case.path)
    if case.kind == "picture":
        return Radiograph.from_picture(case.path)
    try:
        return Radiograph.from_dataset(pydicom.dcmread(case.path), InputSettings())
    except (Refused, OSError, *UNREADABLE) as error:
        raise DataError(f"{case.path}: cannot be read as a radiograph: {error}") from error


def describe(cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """Numbers of images, positives and patients by source and split, for card and manifest."""
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
    """SHA-256 over source, name, patient, split and label of every case: it identifies the data."""
    lines = sorted(
        f"{c.source} {c.path.name} {c.patient} {c.split} {c.label}"
        + ("" if c.class_index is None else f" {c.class_index}")
        for c in cases
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_both_labels(cases: Sequence[Case], target: str) -> None:
    """Raises `DataError` if a split has no case with the target, or none without it."""
    if not any(case.label for case in cases):
        raise DataError(f"none of the {len(cases)} images is labelled {target!r}")
    for split in SPLITS:
        labels = [case.label for case in cases if case.split == split]
        for label, word in ((1, "with"), (0, "without")):
            if label not in labels:
                raise DataError(
                    f"the {split} split has no image {word} {target!r}, of {len(labels)} images"
                )


def _auxiliary_labels(cases: Sequence[Case], target: str, auxiliary: Sequence[str]) -> list[str]:
    """Canonical names of the auxiliary labels, without the target.

    Raises `DataError` if no image knows a label. Only `ABNORMAL` may be unknown: it is dropped.
    """
    known = {name for case in cases for name in case.findings}
    positive = sorted({name for case in cases for name, label in case.findings.items() if label})
    requested = positive if ALL in auxiliary else [canonical(name) for name in auxiliary]
    labels = [name for name in dict.fromkeys(requested) if name in known and name != target]
    if absent := {*requested} - {*labels, target, ABNORMAL}:
        raise DataError(f"no image knows the auxiliary label {', '.join(sorted(absent))}")
    return labels


def _are_new(sources: Collection[str], trained_on: Collection[str]) -> bool:
    """Whether no patient of `sources` can be in the data that a bundle was trained on."""
    seen = {*trained_on}
    return not {*sources} & (seen | (OF_NIH if OF_NIH & seen else set()))


def _require_all_sources(sources: Collection[str], trained_on: Collection[str]) -> None:
    """Raises `DataError` if a source of the training is missing: it may have placed a patient."""
    if missing := sorted({*trained_on} - {*sources}):
        raise DataError(
            "no table places a patient in a split, and the bundle was trained on such data: to "
            "compute its test patients, all of its data are needed. Also name the data of "
            f"{', '.join(missing)} with --data"
        )
