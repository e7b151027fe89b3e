"""Checks the header of a received file with bounded work. No pixel is decoded.

The scan walks every data element of a Part 10 file up to Pixel Data (7FE0,0010). It refuses a
dataset that is truncated, too deep or too large before the instance is acknowledged.
Data set encoding: PS3.5 section 7; undefined lengths and sequences: 7.5; Pixel Data: A.4.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID, ImplicitVRLittleEndian

from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.uid import valid_uid

MAX_DEPTH = 16
"""Deepest nesting of sequences."""
MAX_ELEMENTS = 20_000
"""Most data elements of a dataset, items and delimiters included; also most fragments."""
MAX_NON_PIXEL_BYTES = 4_000_000
"""Most bytes before Pixel Data."""

_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_SAMPLES, _ROWS, _COLUMNS, _BITS_ALLOCATED = 0x00280002, 0x00280010, 0x00280011, 0x00280100
_UIDS = {
    _SOP_CLASS: "SOPClassUID",
    _SOP_INSTANCE: "SOPInstanceUID",
    _STUDY: "StudyInstanceUID",
    _SERIES: "SeriesInstanceUID",
}
_NUMBERS = {
    _SAMPLES: "SamplesPerPixel",
    _ROWS: "Rows",
    _COLUMNS: "Columns",
    _BITS_ALLOCATED: "BitsAllocated",
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The attributes that the listener needs. Every UID is valid; rows and columns are above 0."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    rows: int
    columns: int


def dataset_offset(file: BinaryIO) -> int:
    """Byte at which the dataset of a Part 10 file starts (PS3.10 section 7.1).

    It is computed from the group length of the file meta information. Raises `Refused` if the file
    has no file meta information.
    """
    file.seek(128)
    head = file.read(16)
    if len(head) < 16 or head[:4] != b"DICM" or head[4:12] != b"\x02\x00\x00\x00UL\x04\x00":
        raise Refused(Reason.UNPARSABLE, "no file meta information")
    return 144 + int(struct.unpack("<I", head[12:])[0])


def scan_header(path: Path, *, transfer_syntax_uid: str, max_megapixels: float) -> Header:
    """Reads and checks the header of a Part 10 file.

    transfer_syntax_uid: the negotiated transfer syntax: little endian, not deflated.
    max_megapixels: largest image that is accepted, in million pixels.

    Raises `Refused`
    - if a UID is invalid or missing,
    - if the dataset is truncated, malformed or over a limit of this module,
    - if Pixel Data is missing or too short,
    - if Rows or Columns is missing or 0, or the image is too large.
    """
    syntax = UID(transfer_syntax_uid)
    with path.open("rb") as file:
        start = dataset_offset(file)
        scan = _Scan(file, start, implicit=syntax == ImplicitVRLittleEndian)
        scan.run()
    header = _checked(scan.values, max_megapixels)
    if not scan.has_pixel_data:
        raise Refused(Reason.NO_PIXEL_DATA, "PixelData is missing")
    if scan.native_pixel_bytes is not None and not syntax.is_compressed:
        needed = header.rows * header.columns * _bytes_per_pixel(scan.values)
        if scan.native_pixel_bytes < needed:
            raise Refused(Reason.INVALID_SIZE, "PixelData is shorter than Rows x Columns")
    return header


class _Scan:
    """One walk over a dataset. It keeps a stack of open sequences and uses no recursion."""

    def __init__(self, file: BinaryIO, start: int, *, implicit: bool) -> None:
        self.values: dict[int, bytes] = {}
        self.has_pixel_data = False
        self.native_pixel_bytes: int | None = None
        self._file = file
        self._start = start
        self._end = file.seek(0, os.SEEK_END)
        self._position = start
        self._elements = 0
        # One entry for each open item or sequence: (kind, end or None, implicit VR).
        self._stack: list[tuple[str, int | None, bool]] = [("dataset", self._end, implicit)]

    def run(self) -> None:
        while self._stack and not self.has_pixel_data:
            kind, end, implicit = self._stack[-1]
            if end is not None and self._position >= end:
                if self._position > end:
                    raise Refused(Reason.UNPARSABLE, "an element is longer than its sequence")
                self._stack.pop()
            else:
                self._element(kind, implicit)

    def _element(self, kind: str, implicit: bool) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise Refused(Reason.TOO_LARGE, f"more than {MAX_ELEMENTS} data elements")
        group, number = struct.unpack("<HH", self._read(4))
        tag = group << 16 | number
        if group == 0xFFFE:
            self._delimiter(kind, tag, implicit)
        elif kind == "sequence":
            raise Refused(Reason.UNPARSABLE, "a sequence holds an element that is not an item")
        else:
            self._attribute(tag, implicit)
        if self._position - self._start > MAX_NON_PIXEL_BYTES and not self.has_pixel_data:
            raise Refused(Reason.TOO_LARGE, f"over {MAX_NON_PIXEL_BYTES} bytes before PixelData")

    def _delimiter(self, kind: str, tag: int, implicit: bool) -> None:
        (length,) = struct.unpack("<I", self._read(4))
        open_ended = self._stack[-1][1] is None
        if tag == _ITEM and kind == "sequence":
            self._push("item", length, implicit)
        elif (
            open_ended
            and length == 0
            and (kind, tag)
            in (
                ("item", _ITEM_END),
                ("sequence", _SEQUENCE_END),
            )
        ):
            self._stack.pop()
        else:
            raise Refused(Reason.UNPARSABLE, "an item or delimiter is in the wrong place")

    def _attribute(self, tag: int, implicit: bool) -> None:
        vr, length = self._vr_and_length(tag, implicit)
        if tag == _PIXEL_DATA and len(self._stack) == 1:
            self._pixel_data(length)
        elif length == _UNDEFINED and (tag == _PIXEL_DATA or vr in (b"OB", b"OW")):
            self._fragments()  # an icon image
        elif vr == b"SQ" or length == _UNDEFINED:
            # UN of undefined length is a sequence in implicit VR (PS3.5 section 6.2.2, note).
            self._push("sequence", length, implicit or vr == b"UN")
        elif len(self._stack) == 1 and (tag in _UIDS or tag in _NUMBERS):
            if tag in self.values:
                raise Refused(Reason.UNPARSABLE, "a data element occurs twice")
            if length > 128:
                raise Refused(Reason.INVALID_UID, "a UID or number has an impossible length")
            self.values[tag] = self._read(length)
        else:
            self._skip(length)

    def _vr_and_length(self, tag: int, implicit: bool) -> tuple[bytes, int]:
        if implicit:
            (length,) = struct.unpack("<I", self._read(4))
            return _dictionary_vr(tag), length
        vr = self._read(2)
        if not (vr.isalpha() and vr.isupper()):
            raise Refused(Reason.UNPARSABLE, "the dataset is not encoded in its transfer syntax")
        if vr in _LONG_VRS:
            self._skip(2)
            return vr, int(struct.unpack("<I", self._read(4))[0])
        return vr, int(struct.unpack("<H", self._read(2))[0])

    def _push(self, kind: str, length: int, implicit: bool) -> None:
        # Each level of DICOM nesting has two entries: a sequence and an item.
        if len(self._stack) > 2 * MAX_DEPTH:
            raise Refused(Reason.TOO_LARGE, f"sequences are nested deeper than {MAX_DEPTH}")
        end = None if length == _UNDEFINED else self._position + length
        if end is not None and end > self._end:
            raise Refused(Reason.UNPARSABLE, "the dataset is truncated")
        self._stack.append((kind, end, implicit))

    def _pixel_data(self, length: int) -> None:
        if length != _UNDEFINED:
            self._skip(length)
            self.native_pixel_bytes = length
        else:
            self._fragments()
        self.has_pixel_data = True

    def _fragments(self) -> None:
        """Skips the fragments of encapsulated Pixel Data up to its delimiter (PS3.5 A.4)."""
        for _ in range(MAX_ELEMENTS):
            group, number, length = struct.unpack("<HHI", self._read(8))
            tag = group << 16 | number
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM or length == _UNDEFINED:
                raise Refused(Reason.UNPARSABLE, "a fragment of PixelData is malformed")
            self._skip(length)
        raise Refused(Reason.TOO_LARGE, f"more than {MAX_ELEMENTS} fragments")

    def _read(self, count: int) -> bytes:
        self._file.seek(self._position)
        data = self._file.read(count)
        if len(data) < count:
            raise Refused(Reason.UNPARSABLE, "the dataset is truncated")
        self._position += count
        return data

    def _skip(self, count: int) -> None:
        if self._position + count > self._end:
            raise Refused(Reason.UNPARSABLE, "the dataset is truncated")
        self._position += count


def _dictionary_vr(tag: int) -> bytes:
    try:
        return dictionary_VR(tag).encode("ascii")
    except KeyError:
        return b"UN"


def _checked(values: dict[int, bytes], max_megapixels: float) -> Header:
    uids = {name: _uid(values, tag, name) for tag, name in _UIDS.items()}
    rows, columns = _number(values, _ROWS), _number(values, _COLUMNS)
    if rows is None or columns is None:
        raise Refused(Reason.MISSING_ATTRIBUTE, "Rows or Columns is missing")
    if rows == 0 or columns == 0:
        raise Refused(Reason.INVALID_SIZE, "Rows or Columns is 0 or not a number")
    if rows * columns > max_megapixels * 1e6:
        raise Refused(Reason.TOO_LARGE, f"{rows} x {columns} is over {max_megapixels:g} megapixels")
    return Header(
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        rows=rows,
        columns=columns,
    )


def _uid(values: dict[int, bytes], tag: int, name: str) -> str:
    text = values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")
    if not text:
        raise Refused(Reason.MISSING_ATTRIBUTE, f"{name} is missing")
    if not valid_uid(text):
        raise Refused(Reason.INVALID_UID, f"{name} is not a valid UID")
    return text


def _number(values: dict[int, bytes], tag: int) -> int | None:
    """An attribute of VR US. None if it is absent or empty, 0 if it is not exactly one number."""
    raw = values.get(tag)
    if not raw:
        return None
    return int(struct.unpack("<H", raw)[0]) if len(raw) == 2 else 0


def _bytes_per_pixel(values: dict[int, bytes]) -> float:
    samples = _number(values, _SAMPLES) or 1
    return samples * (_number(values, _BITS_ALLOCATED) or 8) / 8
