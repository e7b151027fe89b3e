"""Label tables and the values in them, read strictly: what is odd is named with its file."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from nemt_dicom.errors import DataError

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OLDEST = 120
"""Years; NIH's table holds ages of several hundred, which are slips of the pen."""


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, values stripped. Raises `DataError` where a needed column lacks."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes the mark
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    twice = [column for column in columns if column and columns.count(column) > 1]
    if twice:
        raise DataError(
            f"{path} names the column {twice[0]!r} twice: which one counts is not known"
        )
    absent = [column for column in needed if column not in columns]
    if columns and absent:
        raise DataError(f"{path} lacks the column {absent[0]!r}; it has {', '.join(columns)}")
    if not rows:
        raise DataError(f"{path} is empty")
    if any(None in row for row in rows):
        raise DataError(f"{path}: a row has more values than there are columns")
    return [{name: value.strip() for name, value in row.items()} for row in rows]


def rows_by_name(
    path: Path, needed: Sequence[str], names: Iterable[str] = ()
) -> dict[str, dict[str, str]]:
    """Rows by their first needed column; of `names` alone where given, and each must be there."""
    rows: dict[str, dict[str, str]] = {}
    for row in read_table(path, needed):
        name = required(row[needed[0]], path, f"a row has no {needed[0]}")
        if name in rows:
            raise DataError(f"{path}: {name} stands there twice")
        rows[name] = row
    chosen = require_all(names, rows, path)
    return {name: rows[name] for name in chosen} if chosen else rows


def require_all(names: Iterable[str], known: Iterable[str], path: Path) -> list[str]:
    """`names` as a list, or `DataError` where the table `path` does not know one of them."""
    chosen, there = list(names), set(known)
    absent = [name for name in chosen if name not in there]
    if absent:
        raise DataError(f"{path} lacks {len(absent)} images: {min(absent)} ...")
    return chosen


def required(value: str, path: Path, message: str) -> str:
    """`value`, or `DataError` with `message` where it is empty."""
    if not value:
        raise DataError(f"{path}: {message}")
    return value


def read_label(value: str, path: Path, column: str) -> int:
    """0 or 1, or `DataError`."""
    if value not in {"0", "1"}:
        raise DataError(f"{path}: {column} is {value!r}, not 0 or 1")
    return int(value)


def read_split(value: str, path: Path) -> Split:
    """One of `SPLITS`, or `DataError`."""
    for split in SPLITS:
        if value == split:
            return split
    raise DataError(f"{path}: split is {value!r}; allowed: {', '.join(SPLITS)}")


def read_nih_patient(value: str, image: str) -> str:
    """NIH's patient number without leading zeros, or `DataError`."""
    if not value.isdecimal():
        raise DataError(f"{image}: the NIH patient is {value!r}, not a number")
    return str(int(value))


def read_sex(value: str) -> str:
    """F, M, or nothing for whatever else stands there."""
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get(value.lower(), "")


def read_age(value: str) -> int | None:
    """Whole years, or None where there is no number that an age can have."""
    try:
        years = int(float(value))
    except (ValueError, OverflowError):
        return None
    return years if 0 <= years <= OLDEST else None
