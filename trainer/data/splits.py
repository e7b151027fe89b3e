"""Which split a patient is in: by the tables, else by a stable hash of the patient."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from nemt_dicom.errors import DataError

from .layouts import Listing
from .tables import SPLITS, Split

TEST_SHARE = 0.2
"""Of the patients whom no table places in a split."""


def place_patients(listings: Sequence[Listing], validation_share: float) -> dict[str, Split]:
    """The one split of every patient; raises `DataError` where tables place one in two."""
    placed: dict[str, set[Split]] = defaultdict(set)
    settled: set[str] = set()  # their table has its own validation split
    for listing in listings:
        own = any(split == "validation" for _, split in listing.images)
        for image, split in listing.images:
            placed[image.patient] |= {split} if split else set()
            if own and split:
                settled.add(image.patient)
    crossing = sorted(patient for patient, splits in placed.items() if len(splits) > 1)
    if crossing:
        first = " and ".join(split for split in SPLITS if split in placed[crossing[0]])
        raise DataError(
            f"{len(crossing)} patients stand in two splits, patient {crossing[0]} in {first} for "
            "one: a model would be tested on whom it has seen"
        )
    result: dict[str, Split] = {}
    for patient, splits in placed.items():
        chosen: Split = next(iter(splits)) if splits else "test" if is_test(patient) else "train"
        if chosen == "train" and patient not in settled:
            chosen = "validation" if is_validation(patient, validation_share) else "train"
        result[patient] = chosen
    return result


def is_validation(patient: str, share: float) -> bool:
    """True for a stable `share` of all patients, whatever other patients there are."""
    return _hash(f"validation:{patient}") < share


def is_test(patient: str) -> bool:
    """True for a stable fifth of all patients, independent of `is_validation`."""
    return _hash(f"test:{patient}") < TEST_SHARE


def _hash(text: str) -> float:
    """Evenly spread in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
