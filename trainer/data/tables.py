"""Reads label tables strictly. An error names the file and the bad value."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from nemt_dicom.errors import DataError

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OLDEST = 120
"""Highest age in years. NIH's table has ages of several hundred years by mistake."""


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file: value by column name, without outer spaces.

    needed: columns that the file must have.

    Raises `DataError` if the file cannot be read, is empty, lacks a needed column or is malformed.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a BOM
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    twice = [column for column in columns if column and columns.count(column) > 1]
    if twice:
        raise DataError(f"{path} names the column {twice[0]!r} twice: remove or rename one of them")
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
    """The rows of a CSV file, by the value in the first needed column.

    names: rows to return; empty for all.

    Raises `DataError` as `read_table` does, if a name is empty or occurs twice, or if the table
    lacks one of `names`.
    """
    rows: dict[str, dict[str, str]] = {}
    for row in read_table(path, needed):
        name = required(row[needed[0]], path, f"a row has no {needed[0]}")
        if name in rows:
            raise DataError(f"{path}: {name} occurs twice")
        rows[name] = row
    chosen = require_all(names, rows, path)
    return {name: rows[name] for name in chosen} if chosen else rows


def require_all(names: Iterable[str], known: Iterable[str], path: Path) -> list[str]:
    """`names` as a list. Raises `DataError` if one is not in `known`, the names in table `path`."""
    chosen, known_names = list(names), set(known)
    absent = [name for name in chosen if name not in known_names]
    if absent:
        raise DataError(f"{path} lacks {len(absent)} images: {min(absent)} ...")
    return chosen


def required(value: str, path: Path, message: str) -> str:
    """`value`. Raises `DataError` with `message` if it is empty."""
    if not value:
        raise DataError(f"{path}: {message}")
    return value


def read_label(value: str, path: Path, column: str) -> int:
    """A label, 0 or 1. Raises `DataError` for any other value."""
    if value not in {"0", "1"}:
        raise DataError(f"{path}: {column} is {value!r}, not 0 or 1")
    return int(value)


def read_split(value: str, path: Path) -> Split:
    """One of `SPLITS`. Raises `DataError` for any other value."""
    for split in SPLITS:
        if value == split:
            return split
    raise DataError(f"{path}: split is {value!r}; allowed: {', '.join(SPLITS)}")


def read_nih_patient(value: str, image: str) -> str:
    """The patient number of NIH without leading zeros. Raises `DataError` if it is no number."""
    if not value.isdecimal():
        raise DataError(f"{image}: the NIH patient is {value!r}, not a number")
    return str(int(value))


def read_sex(value: str) -> str:
    """F or M; an empty string for any other value."""
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get(value.lower(), "")


def read_age(value: str) -> int | None:
    """An age in whole years; None if the value is no number from 0 to `OLDEST`."""
    try:
        years = int(float(value))
    except (ValueError, OverflowError):
        return None
    return years if 0 <= years <= OLDEST else None
