"""Which patients a bundle has seen, so that no training patient is taken for a test patient.

A bundle keeps a short hash of each patient: of a random salt of the bundle, the source, and the
patient's id. So a bundle holds no patient data, and a list of hashes made in advance finds nobody
in it. A person who has the ids of a data set can ask whether its patients are among them.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence

from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.manifest import SeenPatients

from .data.cases import OF_NIH, Case
from .training.places import Places

DIGITS = 10
"""Hexadecimal digits kept of a hash. So one in 3 700 evaluations of 10 000 patients mistakes a
patient for one of 30 000 training patients."""


def record_of_seen(cases: Iterable[Case], places: Places) -> SeenPatients:
    """The patients that a run learns from or chooses by, and the ones that its bundle had seen.

    The record is whole if it has all patients that the networks have seen, under ids that other
    data sets use for the same patients.
    """
    former = _record(places.bundle) if places.bundle else None
    salt = former.salt if former else secrets.token_hex(8)
    splits = {"validation"} if places.keep_module else {"train", "validation"}
    used = [case for case in cases if case.split in splits]
    hashes = {text for case in used for text in _hashes(case, salt)}
    from_the_start = places.target_model is None and places.initial_weights is None
    known = former.whole if former else from_the_start
    return SeenPatients(
        salt=salt,
        hashes=" ".join(sorted(hashes | set(former.hashes.split() if former else ()))),
        whole=known and not any(_is_nameless(case) for case in used),
    )


def require_unseen(bundle: Bundle, cases: Sequence[Case]) -> tuple[str, ...]:
    """Raises `DataError` if a bundle has seen patients of these cases, a test split.

    Returns notes on what cannot be checked; a bundle of a former release keeps no record.
    """
    name, record = f"{bundle.manifest.name} {bundle.manifest.version}", _record(bundle)
    if record is None:
        return (
            f"{name} keeps no record of the patients it was trained on: whether any of these is "
            "one of them cannot be checked",
        )
    known = set(record.hashes.split())
    seen = {case.patient for case in cases if not known.isdisjoint(_hashes(case, record.salt))}
    if seen:
        raise DataError(
            f"{len(seen)} of {len({case.patient for case in cases})} patients of the test split "
            f"are training or validation patients of {name} ({bundle.folder}): name data with the "
            "splits that it was trained on, or measure on these patients by nemt-eval --split "
            "train. If they are different people with the same ids, add a prefix to the ids in the "
            "table"
        )
    if not record.whole:
        return (
            f"{name} knows only a part of the patients it was trained on (it began with a file or "
            "bundle without a record, or with RSNA's images without their patients): whether any "
            "of these is one of them cannot be wholly checked",
        )
    return ()


def _record(bundle: Bundle) -> SeenPatients | None:
    data = bundle.manifest.data
    return None if data is None else data.seen


def _hashes(case: Case, salt: str) -> Iterator[str]:
    """The hashes of a case's patient.

    RSNA's patients are NIH's. An image of RSNA has a second hash, of its name, because one table
    may name its patient and another may not.
    """
    names = [f"{'NIH' if case.source in OF_NIH else case.source} {case.patient}"]
    names += [f"RSNA image {case.path.stem}"] if case.source == "RSNA" else []
    for name in names:
        yield hashlib.sha256(f"{salt} {name}".encode()).hexdigest()[:DIGITS]


def _is_nameless(case: Case) -> bool:
    return case.source == "RSNA" and case.patient == case.path.stem
