"""Values of a dataset that more than one reader needs: UIDs, and attributes that may be empty."""

import re
from typing import Any

from pydicom import Dataset

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def valid_uid(text: str) -> bool:
    """Whether `text` is a UID (PS3.5 section 9.1): dotted numbers, 64 characters at most."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def value_of(dataset: Dataset, keyword: str, default: Any) -> Any:
    """The attribute's value; `default` if it is absent or empty, which mean the same."""
    value = dataset.get(keyword)
    return default if value is None or value == "" else value
