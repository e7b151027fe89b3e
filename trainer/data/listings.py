"""Reads several data folders together and refuses contradictions between them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemt_dicom.errors import DataError

from .labelled import Labelled, Listing
from .layouts import KINDS, find_table, read_listing

SKIP_HINT = "--skip-bad to go on without them"


def read_listings(folders: Sequence[Path], target: str) -> tuple[list[Listing], list[str]]:
    """Reads the tables of data folders, for a canonical target.

    NIH's row of an image is dropped if RSNA has a label of radiologists for the same image.

    Returns the listings, and notes about dropped rows. Raises `DataError` if a table is damaged, if
    the folders have different tasks, or if an image is named twice.
    """
    tables = [find_table(folder) for folder in folders]
    if len({table.resolve() for table in tables}) != len(tables):
        raise DataError("--data names the same folder twice")
    listings = [read_listing(table, target) for table in tables]
    _require_one_task(tables, listings)
    _require_known_patients(tables, listings)
    notes: list[str] = []
    listings = [_without_nih_twins(listing, listings, notes) for listing in listings]
    _require_images_once(listings)
    return listings, notes


def require_kind(folders: Sequence[Path], *, photographs: bool) -> None:
    """Raises `DataError` if the layout of a folder has images of the other kind.

    Call it before the tables are read: errors about their labels would only confuse.

    photographs: whether the bundle explains photographs, not radiographs.
    """
    for folder in folders:
        kind = KINDS.get(find_table(folder).name)
        if kind is not None:
            _require_same_kind(folder, kind == "photograph", photographs)


def require_images_of_kind(listings: Sequence[Listing], *, photographs: bool) -> None:
    """Raises `DataError` if an image is of the other kind; see `require_kind`."""
    for listing in listings:
        for image, _ in listing.images:
            _require_same_kind(image.path.parent, image.kind == "photograph", photographs)


def existing_images(
    listings: Sequence[Listing], notes: list[str], *, skip_bad: bool
) -> list[Labelled]:
    """All images whose file exists.

    skip_bad: missing files are left out with a line in `notes`. Otherwise they raise `DataError`.
    """
    images = [image for listing in listings for image, _ in listing.images]
    existing = [image for image in images if image.path.is_file()]
    missing = sorted({str(image.path) for image in images} - {str(i.path) for i in existing})
    if missing and not skip_bad:
        raise DataError(
            f"{len(missing)} of {len(images)} images that the labels name are missing: "
            f"{name_few(missing)}; {SKIP_HINT}"
        )
    if missing:  # without file names: they may name patients
        notes.append(f"{len(missing)} missing images are left out")
    return existing


def doubts(listings: Sequence[Listing]) -> list[str]:
    """Notes about facts that the tables do not tell but the reader of a result must know."""
    notes = []
    if not all(listing.patients_known for listing in listings):
        notes.append(
            "each image of RSNA counts as one patient, because the tables do not tell which images "
            "show the same patient: a patient may be in two splits. RSNA's mapping file "
            "(pneumonia-challenge-dataset-mappings_2018.json) or splits.csv tells it"
        )
    nih, rsna = (
        {image.patient for listing in listings for image, _ in listing.images
         if image.source == source}
        for source in ("NIH", "RSNA")
    )  # fmt: skip
    if nih & rsna and not any(listing.nih_images for listing in listings):
        notes.append(
            f"{len(nih & rsna)} patients are in NIH's data and in RSNA's, and which images are the "
            "same is not known here: an image may occur twice in one split, with both labels"
        )
    return notes


def name_few(names: Sequence[str], separator: str = ", ") -> str:
    """The first three names, and "..." if there are more."""
    return separator.join(names[:3]) + (f"{separator}..." if len(names) > 3 else "")


def _require_same_kind(folder: Path, photographs: bool, bundle_photographs: bool) -> None:
    if photographs != bundle_photographs:
        names = {True: "photographs", False: "radiographs"}
        raise DataError(
            f"{folder} holds {names[photographs]}, and the bundle was trained on "
            f"{names[bundle_photographs]}: name data of that kind, or another bundle"
        )


def _require_one_task(tables: Sequence[Path], listings: Sequence[Listing]) -> None:
    """One kind of image and one kind of label in a run."""
    if not listings:
        raise DataError("name a folder of labelled images with --data")
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


def _require_known_patients(tables: Sequence[Path], listings: Sequence[Listing]) -> None:
    """RSNA's images show patients of NIH. A run with both must know which patients."""
    unknown = [
        table for table, listing in zip(tables, listings, strict=True) if not listing.patients_known
    ]
    sources = {image.source for listing in listings for image, _ in listing.images}
    if unknown and "NIH" in sources:
        raise DataError(
            f"{unknown[0].parent}: RSNA's images show patients of NIH, but this folder does not "
            "tell which; with NIH data beside it this folder needs RSNA's mapping file "
            "(pneumonia-challenge-dataset-mappings_2018.json) or splits.csv"
        )


def _without_nih_twins(listing: Listing, listings: Sequence[Listing], notes: list[str]) -> Listing:
    """`listing` without NIH's rows of images that RSNA's radiologists have labelled again."""
    twins = frozenset[str]().union(*(other.nih_images for other in listings))
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
    paths = Counter(image.path.resolve() for listing in listings for image, _ in listing.images)
    twice = sorted(str(path) for path, count in paths.items() if count > 1)
    if twice:
        raise DataError(f"{len(twice)} images are named twice: {name_few(twice)}")
