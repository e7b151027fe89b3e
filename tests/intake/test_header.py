"""The check of the header: accepted files, refused files, bounded work."""

import struct
import tracemalloc
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.header import Header, dataset_offset, scan_header
from nemt_dicom.intake.uid import valid_uid
from tests.service.service_kit import encode, radiograph


def scan(path: Path, data: bytes, syntax: str = ExplicitVRLittleEndian) -> Header:
    file = path / "file.dcm"
    file.write_bytes(data)
    return scan_header(file, transfer_syntax_uid=syntax, max_megapixels=1)


def refusal(path: Path, data: bytes, syntax: str = ExplicitVRLittleEndian) -> Reason:
    with pytest.raises(Refused) as caught:
        scan(path, data, syntax)
    assert caught.value.detail.isascii()
    return caught.value.reason


def in_syntax(dataset: Dataset, syntax: str) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    return encode(dataset)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_reads_the_attributes_that_the_listener_needs(tmp_path, syntax):
    dataset = radiograph(size=12)
    item = Dataset()
    item.CodeValue = "x"
    inner = Dataset()
    inner.ProcedureCodeSequence = [item, item]
    dataset.RequestAttributesSequence = [inner]
    dataset.add_new(0x00091001, "UN", b"\1\2\3\4")
    for undefined in (False, True):
        dataset["RequestAttributesSequence"].is_undefined_length = undefined
        for part in dataset.RequestAttributesSequence:
            part.is_undefined_length_sequence_item = undefined
        header = scan(tmp_path, in_syntax(dataset, syntax), syntax)
        assert header == Header(
            sop_class_uid=dataset.SOPClassUID,
            sop_instance_uid=dataset.SOPInstanceUID,
            study_instance_uid=dataset.StudyInstanceUID,
            series_instance_uid=dataset.SeriesInstanceUID,
            rows=12,
            columns=12,
        )


def encapsulated() -> Dataset:
    dataset = radiograph()
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"frame" * 100])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def test_encapsulated_pixels_and_icons(tmp_path):
    dataset = encapsulated()
    icon = Dataset()
    icon.Rows = icon.Columns = 4
    icon.PixelData = encapsulate([b"icon"])
    icon["PixelData"].VR = "OB"
    icon["PixelData"].is_undefined_length = True
    dataset.IconImageSequence = [icon]
    assert scan(tmp_path, encode(dataset), JPEG2000Lossless).rows == 16


@pytest.mark.parametrize("make", [radiograph, encapsulated])
def test_truncated_anywhere(tmp_path, make):
    dataset = make()
    syntax = dataset.file_meta.TransferSyntaxUID
    data = encode(dataset)
    scan(tmp_path, data, syntax)
    for percent in range(100):
        reason = refusal(tmp_path, data[: len(data) * percent // 100], syntax)
        # A cut exactly between two elements makes the next attribute missing.
        missing = {Reason.MISSING_ATTRIBUTE, Reason.NO_PIXEL_DATA}
        assert reason is Reason.UNPARSABLE or reason in missing, percent


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SOPInstanceUID": "../../etc/passwd"}, Reason.INVALID_UID),
        ({"SOPInstanceUID": "1." + "2" * 63}, Reason.INVALID_UID),
        ({"StudyInstanceUID": "1.02"}, Reason.INVALID_UID),
        ({"SeriesInstanceUID": "1.2.x"}, Reason.INVALID_UID),
        ({"SOPInstanceUID": None}, Reason.MISSING_ATTRIBUTE),
        ({"StudyInstanceUID": None}, Reason.MISSING_ATTRIBUTE),
        ({"Rows": None}, Reason.MISSING_ATTRIBUTE),
        ({"Columns": None}, Reason.MISSING_ATTRIBUTE),
        ({"Rows": 0}, Reason.INVALID_SIZE),
        ({"Rows": [16, 16]}, Reason.INVALID_SIZE),
        ({"Rows": 1001, "Columns": 1000}, Reason.TOO_LARGE),
        ({"PixelData": None}, Reason.NO_PIXEL_DATA),
        ({"PixelData": b"\0" * 510}, Reason.INVALID_SIZE),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.filterwarnings("ignore:The value length")
def test_refusals(tmp_path, change, reason):
    dataset = radiograph()
    for keyword, value in change.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    assert refusal(tmp_path, encode(dataset)) is reason


def test_bytes_of_another_transfer_syntax(tmp_path):
    implicit = in_syntax(radiograph(), ImplicitVRLittleEndian)
    assert refusal(tmp_path, implicit, ExplicitVRLittleEndian) is Reason.UNPARSABLE


def raw(elements: bytes) -> bytes:
    """A Part 10 file around an implicit VR dataset."""
    meta = b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", 0)
    return b"\0" * 128 + b"DICM" + meta + elements


def deep(levels: int) -> bytes:
    opened = struct.pack("<HHI", 0x0040, 0x0275, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return raw(opened * levels)


HOSTILE = {
    "deep sequences": deep(100_000),
    "many elements": raw(struct.pack("<HHI", 0x0009, 0x1001, 0) * 1_000_000),
    "many items": raw(
        struct.pack("<HHI", 0x0040, 0x0275, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 1_000_000
    ),
    "much before the pixels": raw(
        (struct.pack("<HHI", 0x0009, 0x1001, 1000) + b"x" * 1000) * 8_000
    ),
    "one long element": raw(struct.pack("<HHI", 0x0009, 0x1001, 5_000_000) + b"x" * 5_000_000),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_limits_hold_and_memory_does_not_grow(tmp_path, data):
    file = tmp_path / "file.dcm"
    file.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(Refused) as caught:
        scan_header(file, transfer_syntax_uid=ImplicitVRLittleEndian, max_megapixels=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason is Reason.TOO_LARGE
    assert peak < 1_000_000


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_without_a_crash(tmp_path_factory, junk):
    folder = tmp_path_factory.getbasetemp()
    for data in (junk, raw(junk)):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            refusal(folder, data, syntax)


@given(st.from_regex(r"\A(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){1,6}\Z"))
def test_uids_that_are_valid(uid):
    assert valid_uid(uid)


@given(st.text(max_size=70))
def test_valid_uids_cannot_leave_a_folder(text):
    if valid_uid(text):
        assert set(text) <= set("0123456789.")
        assert ".." not in text
        assert len(text) <= 64


@pytest.mark.parametrize("uid", ["", "1", "1.", ".1", "1..2", "01.2", "1.2\n", "1.٣", "1." * 33])
def test_uids_that_are_not_valid(uid):
    assert not valid_uid(uid)


@pytest.mark.realdata
def test_real_radiographs_pass(tmp_path, real_data):
    files = sorted(real_data.glob("dicom-interop/*.dcm"))
    files += sorted(real_data.glob("rsna-mini/stage_2_train_images/*.dcm"))[:40]
    assert files
    for original in files:
        dataset, file = pydicom.dcmread(original, force=True), original
        if "TransferSyntaxUID" not in dataset.file_meta:  # as a sender would send it
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            file = tmp_path / original.name
            file.write_bytes(encode(dataset))
        syntax = dataset.file_meta.TransferSyntaxUID
        header = scan_header(file, transfer_syntax_uid=syntax, max_megapixels=100)
        assert header.sop_instance_uid == dataset.SOPInstanceUID
        with file.open("rb") as opened:
            assert dataset_offset(opened) > 132
