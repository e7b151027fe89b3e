"""Reads values that several modules need: UIDs, and attributes that may be empty."""

import re
import zlib
from typing import Any

from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

UNUSABLE = (
    AttributeError,
    BytesLengthException,
    LookupError,
    NotImplementedError,
    OverflowError,
    TypeError,
    ValueError,
)
"""Errors that an attribute raises when it is read, if its VR is unknown or its value is of the
wrong type, length or multiplicity. pydicom converts a value at its first use.
"""
UNREADABLE = (InvalidDicomError, EOFError, zlib.error, *UNUSABLE)
"""Errors that `pydicom.dcmread` raises if a file is no DICOM file, or is damaged."""

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def valid_uid(text: str) -> bool:
    """Whether `text` is a UID (PS3.5 9.1): numbers separated by dots, at most 64 characters."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def value_of(dataset: Dataset, keyword: str, default: Any) -> Any:
    """The value of an attribute; `default` if the attribute is absent or empty."""
    value = dataset.get(keyword)
    return default if value is None or value == "" else value
