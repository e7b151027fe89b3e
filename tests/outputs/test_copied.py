"""What SEG and SC copy from the header of their radiograph: kept, repaired or left out."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from nemt_dicom.outputs import derived, repair
from nemt_dicom.outputs.derived import COPIED
from tests.outputs.output_kit import (
    BUILT,
    errors_of_outputs,
    origin,
    source,
)


@BUILT
@pytest.mark.parametrize(
    "keyword", ["PatientName", "TimezoneOffsetFromUTC", "PixelSpacing", "InstanceNumber"]
)
def test_an_attribute_of_an_unknown_vr_is_left_out(build, keyword: str) -> None:
    """A damaged byte in an attribute that no explanation needs costs no explanation."""
    image = source()
    tag = Tag(keyword)
    image[tag] = RawDataElement(tag, "Q?", 2, b"1 ", 0, is_implicit_VR=False, is_little_endian=True)
    assert not build(header=image).PatientName or keyword != "PatientName"


@BUILT
def test_nothing_is_copied_but_the_list(build) -> None:
    header = source(InstitutionName="CANARY", OperatorsName="CANARY^A", ImageComments="CANARY")
    header.add_new(0x00091001, "LO", "CANARY")
    request = Dataset()
    request.RequestedProcedureID = "R1"
    request.add_new(0x00091002, "LO", "CANARY")
    header.RequestAttributesSequence = Sequence([request])
    ds = build(header=header)
    assert "CANARY" not in str(ds)
    assert ds.RequestAttributesSequence[0].RequestedProcedureID == "R1"
    assert ds.PatientName == "Doe^Jane"
    assert "Laterality" not in ds
    assert not set(COPIED) & {"InstitutionName", "OperatorsName", "ImageComments"}


@BUILT
def test_a_poor_header_is_enough(build) -> None:
    poor = source(
        PatientName=None,
        PatientID=None,
        BodyPartExamined=None,
        PatientOrientation=None,
        InstanceNumber=None,
    )
    ds = build(header=poor)
    for keyword in derived.TYPE_2:
        assert keyword in ds
        assert not ds.get(keyword)
    assert ds.BodyPartExamined == "CHEST"
    assert ds.InstanceNumber == 1


@pytest.mark.parametrize(
    ("vr", "given", "expected"),
    [
        ("AS", "51", "051Y"),
        ("AS", "7M", "007M"),
        ("AS", "old", None),
        ("DA", "1995.07.20", "19950720"),
        ("DA", "yesterday", None),
        ("DA", "20240229", "20240229"),
        ("DA", "20230229", None),
        ("DA", "19000230", None),
        ("DA", "00010101", None),
        ("DA", "20200101-20200202", None),
        ("DA", "20200101-", None),
        ("TM", "12:30:00", "123000"),
        ("TM", "noon", None),
        ("TM", "10", "10"),
        ("TM", "235959.123456", "235959.123456"),
        ("TM", "10-12", None),
        ("TM", "240000", None),
        ("DT", "20200101120000.5+0100", "20200101120000.5+0100"),
        ("DT", "20200101-20200202", None),
        ("CS", "lower case", None),
        ("DS", "0.14300000000000002", "0.143"),
        ("DS", "wide", None),
        ("DS", "1,75", None),
        ("DS", "nan", None),
        ("DS", "inf", None),
        ("LO", "x" * 65, None),
        ("LO", "two\r\nlines", "two lines"),
        ("LO", "\x1b$B;3ED", None),
        ("LO", "M\N{REPLACEMENT CHARACTER}ller", None),
        ("LO", "cp1252 \x96", None),
        ("UI", "1.2.03", None),
        ("UI", "0", None),
        ("UI", "5.1.2", None),
        ("UI", "1.40.2", None),
        ("UI", "1.2." + "3" * 61, None),
        ("UI", "2.25.7", "2.25.7"),
        ("UI", "1.2.840.10008.1", "1.2.840.10008.1"),
        ("PN", "Doe^Jane^^^", "Doe^Jane^^^"),
        ("PN", "Doe^Jane^^^^^", "Doe^Jane"),
        ("PN", "A^B^C^D^E^F", None),
        ("PN", "A" * 64, "A" * 64),
        ("PN", "A" * 60 + "^BCDE", None),
        ("PN", "A=B=C=D", None),
        ("PN", "\N{CJK UNIFIED IDEOGRAPH-5C71}" * 40, "\N{CJK UNIFIED IDEOGRAPH-5C71}" * 40),
        ("LO", "plain", "plain"),
    ],
)
def test_values_are_repaired_or_left_out(vr: str, given: str, expected: str | None) -> None:
    result = repair.repaired(vr, given)
    assert (None if result is None else str(result)) == expected


NAMES = {
    "latin-1": ("ISO_IR 100", "Åström^Zoë", "Åström^Zoë".encode("latin-1")),
    "utf-8": ("ISO_IR 192", "Wang^XiaoDong=王^小东", "Wang^XiaoDong=王^小东".encode()),
    "gb18030": ("GB18030", "Wang^XiaoDong=王^小东", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "cyrillic": ("ISO_IR 144", "Люксембург", "Люксембург".encode("iso8859-5")),
    # PS3.5 H.3.1, H.3.2 and I.2
    "japanese": (
        "\\ISO 2022 IR 87",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "japanese-kana": (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J="
        b"\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
    ),
    "korean": (
        "\\ISO 2022 IR 149",
        "Hong^Gildong=洪^吉洞=홍^길동",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7="
        b"\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
}


@BUILT
@pytest.mark.parametrize(("charset", "name", "_"), NAMES.values(), ids=NAMES)
def test_names_in_other_character_sets_survive(build, charset: str, name: str, _: bytes) -> None:
    ds = build(header=source(SpecificCharacterSet=charset.split("\\"), PatientName=name))
    assert str(ds.PatientName) == name


def on_disk(folder: Path, charset: str, name: bytes, **attributes: object) -> Dataset:
    """The header of a file whose PatientName has these bytes and none that pydicom encoded."""
    name += b" " * (len(name) % 2)
    with disable_value_validation():
        header = source(PatientName="Q" * len(name), SpecificCharacterSet="X" * 60, **attributes)
        file = folder / "source.dcm"
        with pytest.warns(UserWarning, match="Unknown encoding"):
            header.save_as(file, implicit_vr=True, little_endian=True)
    value = charset.encode() + b" " * (len(charset) % 2)
    before, after = (
        b"\x08\0\x05\0" + len(text).to_bytes(4, "little") + text for text in (b"X" * 60, value)
    )
    raw = file.read_bytes()
    assert raw.count(before) == raw.count(b"Q" * len(name)) == 1
    file.write_bytes(raw.replace(before, after).replace(b"Q" * len(name), name))
    return dcmread(file, force=True)


@BUILT
@pytest.mark.parametrize(("charset", "name", "raw"), NAMES.values(), ids=NAMES)
def test_names_of_a_file_survive_with_their_character_set(
    tmp_path: Path, build, charset: str, name: str, raw: bytes
) -> None:
    ds = build(header=on_disk(tmp_path, charset, raw))
    assert str(ds.PatientName) == name
    assert ds["PatientName"].value.original_string == raw
    assert "\\".join(np.atleast_1d(ds.SpecificCharacterSet)) == charset


@BUILT
@pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set")
@pytest.mark.parametrize("charset", ["ISO IR 100", "ISO-IR 100", "latin1", "iso_ir 100"])
def test_a_misspelt_character_set_that_can_be_read_becomes_utf_8(
    tmp_path: Path, build, charset: str
) -> None:
    ds = build(header=on_disk(tmp_path, charset, "Müller^Jürgen".encode("latin-1")))
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == "Müller^Jürgen"


UNREADABLE = {
    "unknown": ("ISO_IR 999", b"M\xfcller"),
    "no-text-encoding": ("hex", b"M\xfcller"),
    "unknown-escape": ("ISO_IR 999", b"\x1b$B;3ED\x1b(B"),
    "escape-without-a-set": ("", b"\x1b$B;3ED\x1b(B"),
    "escape-of-another-set": ("ISO_IR 100", b"\x1b$B;3ED\x1b(B"),
    "latin-1-called-utf-8": ("ISO_IR 192", b"M\xfcller"),
    "windows-called-latin-1": ("ISO_IR 100", b"\x8aimek"),
}


@BUILT
@pytest.mark.filterwarnings("ignore:(Unknown encoding|Found unknown escape|Failed to decode)")
@pytest.mark.parametrize(("charset", "raw"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_name_that_cannot_be_read_is_left_empty(
    tmp_path: Path, build, charset: str, raw: bytes
) -> None:
    ds = build(header=on_disk(tmp_path, charset, raw, StudyDescription="Chest PA"))
    assert "PatientName" in ds
    assert not ds.PatientName
    assert ds.PatientID == "P1"
    assert ds.StudyDescription == "Chest PA"


@BUILT
@pytest.mark.parametrize("charset", ["", "ISO_IR 6"])
def test_a_name_in_no_given_set_is_copied_byte_for_byte(
    tmp_path: Path, build, charset: str
) -> None:
    ds = build(header=on_disk(tmp_path, charset, b"M\xfcller^J\xfcrgen"))
    assert ds.get("SpecificCharacterSet", "") == ""
    assert ds.get_item("PatientName").value.rstrip() == b"M\xfcller^J\xfcrgen"


@BUILT
@pytest.mark.filterwarnings("ignore:(Unknown encoding|Incorrect value)")
@pytest.mark.parametrize("charset", ["ISO_IR 999", "", "ISO IR 100", "ISO_IR 100\\FOO"])
def test_an_ascii_name_survives_any_character_set(tmp_path: Path, build, charset: str) -> None:
    ds = build(header=on_disk(tmp_path, charset, b"Doe^Jane"))
    assert ds.PatientName == "Doe^Jane"


@BUILT
def test_text_that_its_character_set_lacks_is_written_in_utf_8(build) -> None:
    item = Dataset()
    item.RequestedProcedureDescription = "胸部正面"
    header = source(
        SpecificCharacterSet="ISO_IR 100", PatientName="Zoë", RequestAttributesSequence=[item]
    )
    ds = build(header=header)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName == "Zoë"
    assert ds.RequestAttributesSequence[0].RequestedProcedureDescription == "胸部正面"


EMPTIED = {
    "PatientSex": ["U", "X", "MALE", "m"],
    "PatientBirthDate": ["19000230", "1970"],
    "StudyDate": ["20200101-20200202", "20201301"],
    "StudyTime": ["10-12", "2500"],
    "PatientOrientation": ["L", ["L", "F", "X"], ["LEFT", "FOOT"], ["L", "L"], ["LR", "F"], "L\\"],
    "PatientID": [["P1", "P2"], "P" * 65],
    "PatientName": ["A" * 65, "A^B^C^D^E^F", ["A", "B"]],
}


@BUILT
@pytest.mark.parametrize(
    ("keyword", "value"), [(k, v) for k, values in EMPTIED.items() for v in values]
)
def test_what_makes_no_sense_is_emptied(build, keyword: str, value: object) -> None:
    ds = build(header=source(**{keyword: value}))
    assert keyword in ds
    assert not ds.get(keyword)
    if keyword != "PatientID":
        assert ds.PatientID == "P1"


@BUILT
def test_what_makes_sense_is_kept(build) -> None:
    ds = build(
        header=source(
            PatientSex="O",
            PatientBirthDate="19000228",
            StudyDate="20240229",
            StudyTime="1012",
            StudyDescription="Chest, erect",
            BodyPartExamined="CHESTABDOMEN",
            PatientOrientation=["LF", "FR"],
        )
    )
    assert (ds.PatientSex, ds.PatientBirthDate) == ("O", "19000228")
    assert (ds.StudyDate, ds.StudyTime) == ("20240229", "1012")
    assert (ds.StudyDescription, ds.BodyPartExamined) == ("Chest, erect", "CHESTABDOMEN")
    assert list(ds.PatientOrientation) == ["LF", "FR"]


@BUILT
@pytest.mark.parametrize("part", ["THORAX", "LUNG", "CHEST PA", ["CHEST", "ABDOMEN"], "Chest"])
def test_a_body_part_that_would_need_a_side_is_chest(build, part: object) -> None:
    assert build(header=source(BodyPartExamined=part)).BodyPartExamined == "CHEST"


@BUILT
@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("2147483647", 2147483647),
        ("2147483648", 1),
        ("99999999999", 1),
        ("0", 1),
        ("-5", 1),
        ("abc", 1),
    ],
)
def test_instance_number(build, given: str, written: int) -> None:
    header = source()
    with disable_value_validation():
        header.add_new("InstanceNumber", "LO", given)
    assert build(header=header).InstanceNumber == written


def code(**changes: str) -> Dataset:
    """An item of a code sequence; an attribute of the empty string is one without a value."""
    item = Dataset()
    triple = {"CodeValue": "1", "CodingSchemeDesignator": "99X", "CodeMeaning": "one"}
    for keyword, value in {**triple, **changes}.items():
        setattr(item, keyword, value)
    return item


def with_item(keyword: str, *items: dict[str, object]) -> dict[str, list[Dataset]]:
    """A sequence of these items, as attributes for `source`."""
    built = []
    for attributes in items:
        built.append(Dataset())
        for name, value in attributes.items():
            setattr(built[-1], name, value)
    return {keyword: built}


REQUEST, ISSUER = "RequestAttributesSequence", "IssuerOfAccessionNumberSequence"
PROCEDURE, PROTOCOL = "RequestedProcedureCodeSequence", "ScheduledProtocolCodeSequence"


@BUILT
def test_items_keep_what_is_whole(build) -> None:
    request = {
        "RequestedProcedureID": "R1",
        "RequestedProcedureDescription": "",
        PROCEDURE: [code(ContextIdentifier="4")],
        PROTOCOL: [code(), code(CodeMeaning=""), code(CodeValue="2")],
        ISSUER: [],
    }
    issuer = {"LocalNamespaceEntityID": "RIS", "UniversalEntityID": "1.2"}
    ds = build(header=source(**with_item(REQUEST, request), **with_item(ISSUER, issuer)))
    item = ds.RequestAttributesSequence[0]
    assert [e.keyword for e in item] == [PROCEDURE, PROTOCOL, "RequestedProcedureID"]
    assert item[PROCEDURE].value[0] == code()
    assert [c.CodeValue for c in item[PROTOCOL].value] == ["1", "2"]
    assert [e.keyword for e in ds[ISSUER].value[0]] == ["LocalNamespaceEntityID"]


ODD_HEADERS: dict[str, dict[str, object]] = {
    **{
        f"body-part-{part}": {"BodyPartExamined": part}
        for part in ("THORAX", "LUNG", "LUNGS", "CHEST PA", "CHESTLAT", "CHESTABDOMEN", "Chest")
    },
    "two-body-parts": {"BodyPartExamined": ["CHEST", "ABDOMEN"]},
    "backslash": {"StudyDescription": "a\\b"},
    "line-break": {"StudyDescription": "a\r\nb"},
    **{
        f"orientation-{'-'.join(value)}": {"PatientOrientation": value}
        for value in (["L"], ["L", "F", "X"], ["LEFT", "FOOT"], ["L", "L"], ["LR", "F"])
    },
    **{f"sex-{sex}": {"PatientSex": sex} for sex in ("U", "X", "MALE", "m")},
    **{f"born-{day}": {"PatientBirthDate": day} for day in ("19000230", "00010101", "1970")},
    "dates": {"StudyDate": "20200101-20200202", "StudyTime": "10-12"},
    "leap-second": {"StudyTime": "235960"},
    "not-a-number": {"PatientWeight": "nan"},
    "empty-optional": {"PatientAge": "", "IssuerOfPatientID": "", "StudyDescription": ""},
    "empty-lossy": {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "",
        "LossyImageCompressionMethod": "",
    },
    "no-request": {REQUEST: []},
    "empty-request": with_item(REQUEST, {}),
    "empty-in-request": with_item(
        REQUEST, {"RequestedProcedureID": "1", "AccessionNumber": "", PROCEDURE: []}
    ),
    **{
        f"code-without-{keyword}": with_item(REQUEST, {PROCEDURE: [code(**{keyword: ""})]})
        for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
    },
    "code-with-context": with_item(REQUEST, {PROCEDURE: [code(ContextIdentifier="4")]}),
    "two-codes": with_item(REQUEST, {PROCEDURE: [code(), code()]}),
    "two-protocol-codes": with_item(REQUEST, {PROTOCOL: [code(), code()]}),
    "half-a-reference": with_item(
        REQUEST, with_item("ReferencedStudySequence", {"ReferencedSOPInstanceUID": "1.2.3"})
    ),
    "two-values-in-item": with_item(REQUEST, {"RequestedProcedureID": ["1", "2"]}),
    "empty-issuer": with_item(ISSUER, {"LocalNamespaceEntityID": ""}),
    "issuer": with_item(ISSUER, {"LocalNamespaceEntityID": "RIS"}),
    "issuer-without-type": with_item(ISSUER, {"UniversalEntityID": "1.2"}),
    "issuer-type-alone": with_item(ISSUER, {"UniversalEntityIDType": "ISO"}),
    "two-issuers": with_item(
        ISSUER, {"LocalNamespaceEntityID": "A"}, {"LocalNamespaceEntityID": "B"}
    ),
    "empty-facility": with_item(
        "IssuerOfPatientIDQualifiersSequence", with_item("AssigningFacilitySequence", {})
    ),
    **{
        f"frame-of-reference-{uid}": {"FrameOfReferenceUID": uid, "PixelSpacing": [0.2, 0.2]}
        for uid in ("1.2.3", "0", "5.1.2", "2.999.1", "1.2.03")
    },
    "frame-of-reference-empty": {"FrameOfReferenceUID": ""},
    "indicator-alone": {"PositionReferenceIndicator": "X"},
    **{
        f"name-{name[:12]}": {"PatientName": name, "ReferringPhysicianName": name}
        for name in ("A" * 65, "A^B^C^D^E^F", "A^B^^^^^", "A=B=C=D", "tab\tin")
    },
    "instance-number": {"InstanceNumber": 99999999999},
    **{
        f"charset-{charset}": {"SpecificCharacterSet": charset.split("\\")}
        for charset in ("\\ISO 2022 IR 87", "\\ISO 2022 IR 149", "", "ISO IR 100", "ISO_IR 999")
    },
    "charset-utf-8": {"SpecificCharacterSet": "UTF-8", "PatientName": "Müller"},
    "charset-undeclared": {"StudyDescription": "Thorax \x96 p.a."},
}


@pytest.mark.servers
@pytest.mark.filterwarnings("ignore:(Unknown encoding|Incorrect value)")
@pytest.mark.parametrize("attributes", ODD_HEADERS.values(), ids=ODD_HEADERS)
def test_dciodvfy_finds_no_error_whatever_the_header(tmp_path: Path, program, attributes) -> None:
    built = origin(source(**attributes))
    assert errors_of_outputs(program("dciodvfy"), built, tmp_path) == []
