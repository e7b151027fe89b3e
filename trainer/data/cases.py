"""Labelled images from data folders: recognised, placed in splits by patient, read, checked.

Every image becomes an example through `Radiograph` and `Preprocessing`, the two calls that serve.
Boxes and lesion masks are ground truth for evaluation and are no part of a case: see truth.py.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Refused
from nemt_dicom.intake.radiograph import Radiograph

from .layouts import (
    ABNORMAL,
    ALL,
    KINDS,
    Labelled,
    Listing,
    canonical,
    find_table,
    read_listing,
)
from .splits import TEST_SHARE, place_patients
from .tables import SPLITS, Split

SKIP_HINT = "--skip-bad to go on without them"

OF_NIH = frozenset({"NIH", "RSNA"})
"""Sources of NIH's images, and so of its patients."""

UNREADABLE = (
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
    of its own. auxiliary: further labels to answer, where any image knows them, or `ALL`. skip_bad:
    missing images are left out, with a note, instead of an error.

    Raises `DataError` where a folder is of no known layout, lacks a file or contradicts itself or
    another, where a patient is in two splits, or a split has no image with or without the target.
    """
    target = canonical(target)
    listings, notes = _listings(folders, target)
    splits = place_patients(listings, validation_share)
    there = _existing(listings, notes, skip_bad=skip_bad)
    cases = tuple(Case(**vars(image), split=splits[image.patient]) for image in there)
    if any(split is None for listing in listings for _, split in listing.images):
        notes.append(
            f"patients whom no table places in a split: {TEST_SHARE:.0%} are test patients, chosen "
            "by a stable hash"
        )
    require_both_labels(cases, target)
    notes += _doubts(listings)
    classes = listings[0].outputs
    known = {name for case in cases for name in case.findings}
    there_is = sorted({name for case in cases for name, label in case.findings.items() if label})
    asked = there_is if ALL in auxiliary else [canonical(name) for name in auxiliary]
    further = [name for name in dict.fromkeys(asked) if name in known and name != target]
    if absent := {*asked} - {*further, target, ABNORMAL}:
        raise DataError(f"no image knows the auxiliary label {', '.join(sorted(absent))}")
    return Dataset(
        cases=cases,
        target=target,
        outputs=classes if len(classes) > 1 else (target, *further),
        exclusive=len(classes) > 1,
        notes=tuple(notes),
    )


def find_cases_to_evaluate(
    folders: Sequence[Path],
    *,
    target: str,
    split: str,
    photographs: bool,
    validation_share: float,
    trained_on: Collection[str],
    skip_bad: bool = False,
) -> Dataset:
    """All labelled images of data folders, for measuring a bundle on those of `split`.

    Where no table places any patient in a split, all images are of `split`; unless the bundle was
    `trained_on` such data: then the stable hash tells who was held out from it. photographs:
    whether the bundle explains these, not radiographs.

    Raises `DataError` as `find_cases` does, where the images are of the other kind, where `split`
    is empty, and where the hash alone, without all of the data `trained_on`, does not tell who was
    held out.
    """
    target = canonical(target)
    _require_kind(folders, photographs=photographs)
    listings, notes = _listings(folders, target)
    _require_images_of_kind(listings, photographs=photographs)
    splits = place_patients(listings, validation_share)
    there = _existing(listings, notes, skip_bad=skip_bad)
    sources = {image.source for image in there}
    free = not any(split for listing in listings for _, split in listing.images)
    whole = free and not sources & ({*trained_on} | (OF_NIH if OF_NIH & {*trained_on} else set()))
    if free and not whole and (lacking := sorted({*trained_on} - sources)):
        raise DataError(
            "no table places a patient in a split, and whom the bundle was trained on hangs on all "
            f"of its data: name those of {', '.join(lacking)}, too (--data)"
        )
    if free:
        notes.append(
            "no table places a patient in a split: all images are evaluated"
            if whole
            else "no table places a patient in a split, and the bundle was trained on such data: "
            f"splits are those of a stable hash, with {TEST_SHARE:.0%} test patients"
        )
    cases = tuple(
        Case(**vars(image), split=split if whole else splits[image.patient])  # type: ignore[arg-type]
        for image in there
    )
    if not any(case.split == split for case in cases):
        found = sorted({case.split for case in cases})
        raise DataError(f"no image is in the split {split!r}; there are: {', '.join(found)}")
    return Dataset(
        cases=cases,
        target=target,
        outputs=listings[0].outputs,
        exclusive=len(listings[0].outputs) > 1,
        notes=(*notes, *_doubts(listings)),
    )


def read_radiograph(case: Case) -> Radiograph:
    """The image of a case, by the same code that serves; raises `DataError`."""
    if case.kind == "photograph":
        return Radiograph.from_photograph(case.path)
    if case.kind == "picture":
        return Radiograph.from_picture(case.path)
    try:
        return Radiograph.from_dataset(pydicom.dcmread(case.path), InputSettings())
    except UNREADABLE as error:
        raise DataError(f"{case.path}: cannot be read as a radiograph: {error}") from error


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


def _listings(folders: Sequence[Path], target: str) -> tuple[list[Listing], list[str]]:
    """What the tables of the folders name, of one task and each image once; and notes."""
    tables = [find_table(folder) for folder in folders]
    if len({table.resolve() for table in tables}) != len(tables):
        raise DataError("the same --data folder is given twice")
    listings = [read_listing(table, target) for table in tables]
    _require_one_task(tables, listings)
    notes: list[str] = []
    listings = [_without_nih_twins(listing, listings, notes) for listing in listings]
    _require_images_once(listings)
    return listings, notes


def _require_kind(folders: Sequence[Path], *, photographs: bool) -> None:
    """Before the tables are read, whose labels would only confuse."""
    for folder in folders:
        kind = KINDS.get(find_table(folder).name)
        if kind is not None:
            _require(folder, kind == "photograph", photographs)


def _require_images_of_kind(listings: Sequence[Listing], *, photographs: bool) -> None:
    for listing in listings:
        for image, _ in listing.images:
            _require(image.path.parent, image.kind == "photograph", photographs)


def _require(folder: Path, given: bool, wanted: bool) -> None:
    if given != wanted:
        names = {True: "photographs", False: "radiographs"}
        raise DataError(
            f"{folder} holds {names[given]}, and the bundle was trained on {names[wanted]}: name "
            "data of that kind, or another bundle"
        )


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
    paths = Counter(image.path.resolve() for found in listings for image, _ in found.images)
    twice = sorted(str(path) for path, count in paths.items() if count > 1)
    if twice:
        raise DataError(f"{len(twice)} images are named twice: {name_few(twice)}")


def _existing(listings: Sequence[Listing], notes: list[str], *, skip_bad: bool) -> list[Labelled]:
    images = [image for listing in listings for image, _ in listing.images]
    there = [image for image in images if image.path.is_file()]
    missing = sorted({str(image.path) for image in images} - {str(i.path) for i in there})
    if missing and not skip_bad:
        raise DataError(
            f"{len(missing)} of {len(images)} images that the labels name are missing: "
            f"{name_few(missing)}; {SKIP_HINT}"
        )
    if missing:
        notes.append(f"{len(missing)} missing images are left out")  # their names may name patients
    return there


def require_both_labels(cases: Sequence[Case], target: str) -> None:
    """Raises `DataError` where a split has no case with the target or none without."""
    if not any(case.label for case in cases):
        raise DataError(f"none of the {len(cases)} images is labelled {target!r}")
    for split in SPLITS:
        labels = [case.label for case in cases if case.split == split]
        for label, word in ((1, "with"), (0, "without")):
            if label not in labels:
                raise DataError(
                    f"the {split} split has no image {word} {target!r}, of {len(labels)} images"
                )
