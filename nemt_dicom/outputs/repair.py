"""Makes the values of a received header valid, so that outputs can have them.

Sources: PS3.5 6.2 (value representations), 6.4 (multiplicity), 9.1 (UIDs); PS3.3 C.12.1.1.2
(character sets), 8.8 (codes), 10.17 and 10.14 (issuers), 10.11 (references).
"""

import math
import re
import unicodedata
import warnings
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from io import BytesIO
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.charset import STAND_ALONE_ENCODINGS, convert_encodings, python_encoding
from pydicom.config import RAISE, strict_reading
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.filereader import read_dataset
from pydicom.sequence import Sequence
from pydicom.valuerep import DSfloat, PersonName, validate_value

from nemt_dicom.intake.uid import UNUSABLE, valid_uid

UTF_8 = "ISO_IR 192"
DEFAULT_SETS = frozenset({"", "ISO_IR 6", "ISO 2022 IR 6"})
EXTENSIBLE_SETS = frozenset(t for t in python_encoding if t.startswith("ISO 2022 IR "))
SINGLE_SETS = frozenset(
    {*(t for t in python_encoding if t.startswith("ISO_IR ")), *STAND_ALONE_ENCODINGS}
)

CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
UNIVERSAL = ("UniversalEntityID", "UniversalEntityIDType")
OF_MANY_ITEMS = frozenset(
    {"RequestAttributesSequence", "ScheduledProtocolCodeSequence", "ReferencedStudySequence"}
)
INSIDE_ITEMS = frozenset(
    {"IssuerOfAccessionNumberSequence", "AssigningFacilitySequence", "ReferencedStudySequence"}
)
"""The sequences, besides those of codes, that are copied within an item."""


def copied(keyword: str, value: Any, *, ascii_only: bool) -> Any:
    """The valid form of an attribute's value; None if the attribute must be left out.

    It is left out if the value is empty, is invalid for the VR (PS3.5 6.2), or has a number of
    values that the attribute does not allow (6.4).

    ascii_only: whether other text could not be decoded, see `character_set`.
    """
    tag = tag_for_keyword(keyword)
    if value is None or tag is None:
        return None
    if isinstance(value, Sequence):
        items = [item for one in value if (item := _item(keyword, one, ascii_only))]
        return items if len(items) == 1 or (items and keyword in OF_MANY_ITEMS) else None
    result = repaired(dictionary_VR(tag), value)
    if result is None or result == "" or not _fits(dictionary_VM(tag), result):
        return None
    if ascii_only and not str(result).isascii():
        return None
    return result


def repaired(vr: str, value: Any) -> Any:
    """A value that is valid for its VR (PS3.5 6.2), or None."""
    if not _is_multi(value):
        return _single(vr, value)
    values = [_single(vr, one) for one in value]
    return None if None in values else values


def _single(vr: str, value: Any) -> Any:
    text = value.strip() if isinstance(value, str) and not isinstance(value, PersonName) else value
    if isinstance(text, bytes):
        return None
    try:
        if vr in _REPAIRS and text != "":
            text = _REPAIRS[vr](text)
        if vr != "DS":
            validate_value(vr, text, RAISE)
    except UNUSABLE:
        return None
    return text if _is_text_of(vr, str(text)) else None


def _is_text_of(vr: str, text: str) -> bool:
    """Whether `text` was decoded and has no control characters (PS3.5 6.1.3).

    Remaining escape sequences belong to a character set that the dataset does not name.
    """
    breaks = "\t\n\f\r" if vr in {"LT", "ST", "UT"} else ""
    return not any(
        c == "\N{REPLACEMENT CHARACTER}" or (unicodedata.category(c) == "Cc" and c not in breaks)
        for c in text
    )


def decimal(value: float) -> DSfloat:
    """A DS value of 16 characters at most (PS3.5 6.2), true to 1 part in 10^10."""
    return DSfloat(f"{value:.10g}")


def _decimal_string(value: Any) -> DSfloat | None:
    number = float(value)
    return decimal(number) if math.isfinite(number) else None


def _age(text: str) -> str | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", text)
    return f"{int(match[1]):03d}{match[2] or 'Y'}" if match else None


def _date(text: str) -> str | None:
    """A date of the calendar, from the year 1000 on; a range is one in queries only."""
    day = text.replace(".", "")
    if not re.fullmatch(r"[12][0-9]{7}", day):
        return None
    date(int(day[:4]), int(day[4:6]), int(day[6:]))
    return day


def _time(text: str) -> str | None:
    """A time of day; dciodvfy knows no leap second."""
    time = text.replace(":", "")
    pattern = r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?"
    return time if re.fullmatch(pattern, time) else None


def _date_time(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9]{4,14}(\.[0-9]{1,6})?([+-][0-9]{4})?", text) else None


def _uid(text: str) -> str | None:
    """A UID under a root that exists (ISO 9834-1), that of examples left out."""
    rooted = re.match(r"(?:[01]\.[1-3]?[0-9]|2\.(?!999(?:\.|$))[0-9]+)(?:\.|$)", text)
    return text if valid_uid(text) and rooted else None


def _one_line(text: str) -> str:
    return re.sub(r"[\t\n\f\r]+", " ", text)


def _name(value: Any) -> Any:
    """A name of 3 groups, 5 components and 64 characters a group at most (PS3.5 6.2).

    One that fits is kept as it was encoded. A longer one would name somebody else if it were cut.
    """
    groups = _one_line(str(value)).split("=")
    groups = [group.rstrip("^") if group.count("^") > 4 else group for group in groups]
    if len(groups) > 3 or any(len(group) > 64 or group.count("^") > 4 for group in groups):
        return None
    text = "=".join(groups)
    return value if text == str(value) else text


_REPAIRS: dict[str, Callable[[Any], Any]] = {
    "AS": _age,
    "DA": _date,
    "DS": _decimal_string,
    "DT": _date_time,
    "LO": _one_line,
    "PN": _name,
    "SH": _one_line,
    "TM": _time,
    "UI": _uid,
}


def _fits(multiplicity: str, value: Any) -> bool:
    """Whether the value has as many values as the data dictionary allows (PS3.6 6): 1, 2, 1-n."""
    count = len(value) if _is_multi(value) else 1
    least, _, most = multiplicity.partition("-")
    if not most:
        return count == int(least)
    return count >= int(least) and (not most.isdigit() or count <= int(most))


def _is_multi(value: Any) -> bool:
    return (
        hasattr(value, "__iter__")
        and not isinstance(value, str | bytes)
        and not hasattr(value, "components")
    )


def _item(sequence: str, item: Dataset, ascii_only: bool) -> Dataset | None:
    """A copy of a sequence item with its standard attributes that have a valid value.

    None if a required attribute (type 1) is missing. A code keeps its three attributes. An issuer's
    UniversalEntityID and its type come together or not at all. SpecificCharacterSet of the item is
    not copied: that of the whole output applies.
    """
    copy = Dataset()
    of_code = sequence.endswith("CodeSequence")
    for tag in item.keys():  # noqa: SIM118 - a dataset iterates over elements
        if tag.is_private or tag == 0x00080005 or not dictionary_has_tag(tag):
            continue
        try:
            element = item[tag]
        except UNUSABLE:
            continue
        keyword = element.keyword
        if (of_code and keyword not in CODE) or not _is_copied_inside(keyword, element.value):
            continue
        value = copied(keyword, element.value, ascii_only=ascii_only)
        if value is not None:
            copy.add(DataElement(tag, dictionary_VR(tag), value))
    if not all(keyword in copy for keyword in UNIVERSAL):
        for keyword in UNIVERSAL:
            copy.pop(keyword, None)
    required = CODE if of_code else REFERENCE if sequence.startswith("Referenced") else ()
    return copy if len(copy) and all(keyword in copy for keyword in required) else None


def _is_copied_inside(keyword: str, value: Any) -> bool:
    return (
        not isinstance(value, Sequence)
        or keyword.endswith("CodeSequence")
        or keyword in INSIDE_ITEMS
    )


def character_set(value: Any) -> tuple[list[str], bool]:
    """SpecificCharacterSet as outputs have it (PS3.3 C.12.1.1.2), and whether only ASCII is sure.

    value: SpecificCharacterSet of the source, as pydicom reads it.

    - A set of the standard is kept, and names are kept byte for byte.
    - If pydicom reads the set under another spelling (`ISO IR 100`, `UTF-8`), it becomes UTF-8.
    - Without a set, bytes beyond ASCII are against the standard. They are copied as they are: the
      PACS shows them as in the radiograph, and another name could separate the objects from it.
    - With an unknown set nobody knows the letters. Such text is left out; PatientID remains.
    """
    terms = [str(term).strip() for term in value] if _is_multi(value) else [str(value or "")]
    if DEFAULT_SETS.issuperset(terms):
        return [], False
    if len(terms) == 1:
        standard = terms[0] in SINGLE_SETS | EXTENSIBLE_SETS
    else:
        standard = (EXTENSIBLE_SETS | {""}).issuperset(terms[:1]) and EXTENSIBLE_SETS.issuperset(
            terms[1:]
        )
    if standard:
        return terms, False
    return ([UTF_8], False) if _is_decoded(terms) else ([], True)


def _is_decoded(terms: list[str]) -> bool:
    """Whether pydicom knows these sets, and decodes ASCII with them as ASCII."""
    ascii_text = "".join(map(chr, range(32, 127)))
    with warnings.catch_warnings(), strict_reading():
        warnings.simplefilter("ignore")
        try:
            encodings = convert_encodings(terms)
            return all(ascii_text.encode().decode(one) == ascii_text for one in encodings)
        except (LookupError, ValueError):
            return False


def comes_back(dataset: Dataset) -> bool:
    """Whether all text can be written in the dataset's character set and read again.

    A copy is written, because pydicom keeps the bytes of a name that it has encoded once.
    """
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            deepcopy(dataset).save_as(buffer, implicit_vr=True, little_endian=True)
            buffer.seek(0)
            return bool(read_dataset(buffer, True, True) == dataset)
        except (UserWarning, *UNUSABLE):
            return False
