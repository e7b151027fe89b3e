"""Places each patient in a split: by the tables, otherwise by a stable hash of the patient."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from nemt_dicom.errors import DataError

from .labelled import Listing
from .tables import SPLITS, Split

TEST_SHARE = 0.2
"""Share of test patients among the patients whom no table places in a split."""


def place_patients(listings: Sequence[Listing], validation_share: float) -> dict[str, Split]:
    """The split of every patient, by name.

    validation_share: share of the training patients that go to the validation split, from 0 to 1.
        A table with a validation split keeps that split.

    Raises `DataError` if the tables place a patient in two splits.
    """
    placed: dict[str, set[Split]] = defaultdict(set)
    settled: set[str] = set()  # patients whose table has a validation split
    for listing in listings:
        has_validation = any(split == "validation" for _, split in listing.images)
        for image, split in listing.images:
            placed[image.patient] |= {split} if split else set()
            if has_validation and split:
                settled.add(image.patient)
    crossing = sorted(patient for patient, splits in placed.items() if len(splits) > 1)
    if crossing:
        first = " and ".join(split for split in SPLITS if split in placed[crossing[0]])
        raise DataError(
            f"{len(crossing)} patients are in two splits, for example patient {crossing[0]} in "
            f"{first}: the model would be tested on patients of its training; correct the tables"
        )
    result: dict[str, Split] = {}
    for patient, splits in placed.items():
        chosen: Split = next(iter(splits)) if splits else "test" if is_test(patient) else "train"
        if chosen == "train" and patient not in settled:
            chosen = "validation" if is_validation(patient, validation_share) else "train"
        result[patient] = chosen
    return result


def is_validation(patient: str, share: float) -> bool:
    """True for a stable `share` of all patients. It does not depend on the other patients."""
    return _hash(f"validation:{patient}") < share


def is_test(patient: str) -> bool:
    """True for a stable fifth of all patients, independently of `is_validation`."""
    return _hash(f"test:{patient}") < TEST_SHARE


def _hash(text: str) -> float:
    """A hash of `text`, uniform in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
