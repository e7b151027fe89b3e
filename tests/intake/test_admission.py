"""Which datasets are accepted: one case for each refusal and for each near miss that passes."""

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.admission import NON_FRONTAL_CODES, admit, age_years
from nemt_dicom.intake.radiograph import Radiograph
from tests.intake.scene import Recipe, code, plain, write

CR, SC = ComputedRadiographyImageStorage, SecondaryCaptureImageStorage


@pytest.fixture(autouse=True, scope="module")
def values_are_not_validated() -> Iterator[None]:
    """The service reads files in this mode: pydicom does not warn of an invalid value."""
    with disable_value_validation():
        yield


def source(purpose: str | None) -> Dataset:
    """An item of SourceImageSequence."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CR, "2.25.9"
    if purpose is not None:
        item.PurposeOfReferenceCodeSequence = [code(purpose, "DCM", "purpose")]
    return item


PREDECESSOR = {"ImageType": ["DERIVED", "PRIMARY"], "SourceImageSequence": [source("121320")]}
OURS = {
    "SOPClassUID": SC,
    "Modality": "OT",
    "ImageType": ["DERIVED", "SECONDARY"],
    "SourceImageSequence": [source("121322")],
}
FOR_PROCESSING = {"SOPClassUID": DigitalXRayImageStorageForProcessing}
YOUNG = InputSettings(min_age_years=18)


REFUSED = [
    (Reason.SOP_CLASS, {"SOPClassUID": CTImageStorage}, "CT"),
    (Reason.SOP_CLASS, {"SOPClassUID": SegmentationStorage, "Modality": "SEG"}, "our-SEG"),
    (
        Reason.SOP_CLASS,
        {"SOPClassUID": MultiFrameGrayscaleWordSecondaryCaptureImageStorage},
        "multi-frame-SC",
    ),
    (Reason.SOP_CLASS, {"SOPClassUID": None}, "no-class"),
    (Reason.NOT_CR_DX, {"Modality": "OT", "SOPClassUID": SC}, "SC-of-OT"),
    (Reason.NOT_CR_DX, {"Modality": "MG"}, "MG"),
    (Reason.NOT_CR_DX, {"Modality": None}, "no-modality"),
    (Reason.NOT_CR_DX, {"Modality": ""}, "empty-modality"),
    (Reason.DERIVED_OUTPUT, OURS, "our-SC"),
    (Reason.DERIVED_OUTPUT, {**OURS, "Modality": "DX"}, "SC-derived-of-DX"),
    (
        Reason.DERIVED_OUTPUT,
        {**OURS, "Modality": "CR", "SourceImageSequence": [source(None)]},
        "SC-derived-without-purpose",
    ),
    (
        Reason.DERIVED_OUTPUT,
        {**OURS, "Modality": "CR", "SourceImageSequence": [source("121320"), source("121322")]},
        "SC-derived-twice",
    ),
    (Reason.FOR_PROCESSING, FOR_PROCESSING, "for-processing-class"),
    (Reason.FOR_PROCESSING, {"PresentationIntentType": "FOR PROCESSING"}, "for-processing-intent"),
    *[
        (Reason.NOT_CHEST, {"BodyPartExamined": part}, part)
        for part in ("EXTREMITY", "T-SPINE", "TSPINE", "ABDOMEN", "SKULL", "HAND", "RIBS")
    ],
    (
        Reason.NOT_CHEST,
        {
            "BodyPartExamined": None,
            "AnatomicRegionSequence": [code("30021000", "SCT", "Lower leg")],
        },
        "region-leg",
    ),
    *[
        (Reason.LATERAL_VIEW, {"ViewPosition": view}, view)
        for view in ("LL", "RL", "LATERAL", "LAT", "L LAT", "LLAT", "RAO", "LPO", "LLO", "lateral")
    ],
    *[
        (Reason.LATERAL_VIEW, {"ViewPosition": view}, view)
        for view in (
            *("LATERALE", "LATERO LATERALE", "LATEROLATERAL", "LATÉRAL", "LATL", "LAT1", "LT_LAT"),
            *("XTLAT", "SLAT", "RTLATERAL", "PA AND LAT", "PROFIL", "PROFILO", "PERFIL"),
            *("SEITLICH", "SAGITTAL", "OBLIQUE", "OBL", "OBLICUA", "LLO DECUBITUS"),
        )
    ],
    *[
        (Reason.LATERAL_VIEW, {"ViewCodeSequence": [code(*named)]}, f"view-{named[0]}-{named[2]}")
        for named in (
            ("399067008", "SCT", "Seitlich"),
            ("399067008", "SCT", ""),
            ("R-10236", "SRT", "gauche"),
            ("R-10236", "99SDM", "gauche"),
            ("30730003", "SCT", "Sagittal"),
            ("399135007", "SCT", "LVO"),
            ("R-102C1", "SRT", "schräg"),
            ("X1", "99LOCAL", "profil gauche"),
            ("X1", "99LOCAL", "Seitlich links"),
            ("X1", "99LOCAL", "Incidence latérale"),
            ("X1", "99LOCAL", "LL"),
        )
    ],
    (
        Reason.LATERAL_VIEW,
        {
            "ViewCodeSequence": [
                code("399348003", "SCT", "antero-posterior"),
                code("399173006", "SCT", "links"),
            ]
        },
        "second-view-code",
    ),
    (
        Reason.LATERAL_VIEW,
        {"ViewCodeSequence": [code("399198007", "SCT", "right lateral")], "ViewPosition": None},
        "view-code-lateral",
    ),
    (
        Reason.LATERAL_VIEW,
        {"ViewCodeSequence": [code("399135002", "SCT", "Left Anterior Oblique")]},
        "view-code-oblique",
    ),
    (Reason.LATERAL_VIEW, {"PatientOrientation": ["P", "F"]}, "orientation-P-F"),
    (Reason.LATERAL_VIEW, {"PatientOrientation": ["A", "F"]}, "orientation-A-F"),
    (Reason.MULTI_FRAME, {"NumberOfFrames": 2}, "two-frames"),
    (Reason.COLOUR, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "rgb"),
    (Reason.COLOUR, {"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
    (Reason.COLOUR, {"SamplesPerPixel": 3}, "three-samples"),
    (Reason.INVALID_SIZE, {"Rows": 31}, "31-rows"),
    (Reason.INVALID_SIZE, {"Columns": 0}, "no-columns"),
    (Reason.INVALID_SIZE, {"Rows": 60000, "Columns": 40}, "a-strip"),
    (Reason.TOO_LARGE, {"Rows": 20000, "Columns": 20000}, "400-megapixels"),
    (Reason.INVALID_ATTRIBUTE, {"BitsStored": 17}, "bits-stored-17"),
    (Reason.INVALID_ATTRIBUTE, {"BitsStored": 0}, "bits-stored-0"),
    (Reason.INVALID_ATTRIBUTE, {"BitsAllocated": 32}, "bits-allocated-32"),
    (Reason.INVALID_ATTRIBUTE, {"HighBit": 16}, "high-bit-16"),
    (Reason.INVALID_ATTRIBUTE, {"HighBit": 5}, "high-bit-5"),
    (Reason.INVALID_ATTRIBUTE, {"Rows": [10, 20]}, "two-values-for-rows"),
    *[
        (Reason.MISSING_ATTRIBUTE, {keyword: None}, f"no-{keyword}")
        for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored")
    ],
    (Reason.MISSING_ATTRIBUTE, {"PhotometricInterpretation": None}, "no-photometric"),
    (Reason.NO_PIXEL_DATA, {"PixelData": None}, "no-pixels"),
]


@pytest.mark.parametrize(
    ("reason", "attributes"), [pytest.param(r, a, id=f"{r}:{name}") for r, a, name in REFUSED]
)
def test_refused(reason: Reason, attributes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        Radiograph.from_dataset(plain(**attributes), InputSettings())
    assert caught.value.reason is reason
    assert str(caught.value).startswith(reason.value)


PASSES = {
    "as-it-is": {},
    "no-age-view-part-id": {
        "ViewPosition": None,
        "BodyPartExamined": None,
        "PatientID": None,
        "PatientName": None,
        "PatientOrientation": None,
    },
    "empty-values": {
        "ViewPosition": "",
        "BodyPartExamined": "",
        "PatientID": "",
        "PatientOrientation": "",
        "PatientAge": "",
    },
    "CR": {"SOPClassUID": CR, "Modality": "CR"},
    "SC-of-CR": {"SOPClassUID": SC, "Modality": "CR"},
    "SC-of-DX-derived-but-of-nothing": {
        "SOPClassUID": SC,
        "ImageType": ["DERIVED", "PRIMARY"],
    },
    "SC-with-predecessor": {"SOPClassUID": SC, "Modality": "CR", **PREDECESSOR},
    "CR-with-predecessor": {"SOPClassUID": CR, "Modality": "CR", **PREDECESSOR},
    "CR-derived": {"SOPClassUID": CR, "Modality": "CR", "ImageType": ["DERIVED", "PRIMARY"]},
    "thorax": {"BodyPartExamined": "THORAX"},
    "chest-lower-case": {"BodyPartExamined": "Chest"},
    "chest-and-abdomen": {"BodyPartExamined": "CHESTABDOMEN"},
    "region-chest": {
        "BodyPartExamined": None,
        "AnatomicRegionSequence": [code("51185008", "SCT", "Chest")],
    },
    "region-old-code": {
        "BodyPartExamined": None,
        "AnatomicRegionSequence": [code("T-D3000", "SRT", "Chest")],
    },
    "AP": {"ViewPosition": "AP"},
    "left-decubitus": {"ViewPosition": "LLD"},
    "right-decubitus": {"ViewPosition": "RLD"},
    "decubitus-in-words": {"ViewPosition": "LAT DECUBITUS"},
    **{
        f"view-{view}": {"ViewPosition": view}
        for view in (
            *("PA", "ERECT AP", "PA LLD", "AP SUPINE", "LATERAL DECUBITUS", "FRONTAL"),
            *("POSTERO_ANTERIOR", "POSTEROANTERIOR", "ANTEROPOSTERIOR", "AP FLAT", "BILAT"),
            *("DÉCUBITUS LATÉRAL", "PLATE", "AP LORDOTIC", "PORTABLE", "DORSAL"),
        )
    },
    "view-code-decubitus-in-french": {
        "ViewCodeSequence": [code("X1", "99LOCAL", "Décubitus latéral droit")]
    },
    "view-code-bilateral": {"ViewCodeSequence": [code("X1", "99LOCAL", "AP, bilateral")]},
    "view-code-decubitus": {
        "ViewCodeSequence": [code("260467005", "SCT", "left lateral decubitus")]
    },
    "view-code-frontal": {"ViewCodeSequence": [code("399348003", "SCT", "antero-posterior")]},
    "one-frame": {"NumberOfFrames": 1},
    "burned-in": {"BurnedInAnnotation": "YES"},
    "a-child": {"PatientAge": "003Y"},
}


@pytest.mark.parametrize("attributes", PASSES.values(), ids=PASSES)
def test_near_miss_passes(attributes: dict[str, Any]) -> None:
    Radiograph.from_dataset(plain(**attributes), InputSettings())


def test_smallest_image_passes() -> None:
    ds = plain(Rows=32, Columns=320, PixelData=b"\0\1" * (32 * 160) + b"\0\0" * (32 * 160))
    assert Radiograph.from_dataset(ds, InputSettings()).pixels.shape == (32, 320)


def test_every_lateral_and_oblique_code_of_the_standard_is_refused() -> None:
    """CID 4010, View for Radiography, as pydicom has it, in both terminologies."""
    side = re.compile("lateral|oblique|sagittal", re.IGNORECASE)
    for keyword in codes.cid4010.dir():
        concept = getattr(codes.cid4010, keyword)
        old = mapping["SCT"].get(concept.value)
        wanted = {concept.value, old} if side.search(concept.meaning) else set()
        assert {concept.value, old} & NON_FRONTAL_CODES == wanted, concept
    assert len(NON_FRONTAL_CODES) == 50


# --- refusals by configuration ---


def refusal(settings: InputSettings, **attributes: Any) -> Reason | None:
    try:
        admit(plain(**attributes), settings)
    except Refused as refused:
        return refused.reason
    return None


def test_for_processing_if_configured() -> None:
    accepting = InputSettings(accept_for_processing=True)
    assert refusal(accepting, **FOR_PROCESSING) is None
    assert refusal(accepting, PresentationIntentType="FOR PROCESSING") is None


def test_burned_in_if_configured() -> None:
    strict = InputSettings(refuse_burned_in=True)
    assert refusal(strict, BurnedInAnnotation="YES") is Reason.BURNED_IN
    assert refusal(strict, BurnedInAnnotation="NO") is None
    assert refusal(strict) is None


def test_megapixels_if_configured() -> None:
    assert refusal(InputSettings(max_megapixels=0.017)) is Reason.TOO_LARGE
    assert refusal(InputSettings(max_megapixels=0.018)) is None


@pytest.mark.parametrize(
    ("attributes", "refused"),
    [
        ({"PatientAge": "017Y"}, True),
        ({"PatientAge": "018Y"}, False),
        ({"PatientAge": "011M"}, True),
        ({"PatientAge": "300M"}, False),
        ({"PatientAge": "004W"}, True),
        ({"PatientAge": "010D"}, True),
        ({"PatientBirthDate": "20100601", "StudyDate": "20200101"}, True),
        ({"PatientBirthDate": "19700601", "StudyDate": "20200101"}, False),
        ({"PatientAge": "040Y", "PatientBirthDate": "20190101", "StudyDate": "20200101"}, False),
        ({}, False),
        ({"PatientBirthDate": "20100601"}, False),
        ({"PatientBirthDate": "", "StudyDate": "20200101"}, False),
    ],
    ids=str,
)
def test_age_limit(attributes: dict[str, str], refused: bool) -> None:
    assert refusal(YOUNG, **attributes) is (Reason.BELOW_MINIMUM_AGE if refused else None)
    assert refusal(InputSettings(), **attributes) is None


@pytest.mark.parametrize(
    ("text", "years"),
    [("51", 51), ("051Y", 51), ("024M", 2), ("052W", 1), ("365D", 1), ("Y", None), ("old", None)],
)
def test_age_in_years(text: str, years: float | None) -> None:
    ds = Dataset()
    ds["PatientAge"] = DataElement("PatientAge", "AS", text, validation_mode=0)
    age = age_years(ds)
    assert age is None if years is None else age == pytest.approx(years, abs=0.01)


# --- a message holds no patient data, and only Refused is raised ---


@pytest.mark.parametrize("keyword", ["Modality", "BodyPartExamined", "ViewPosition"])
def test_free_text_in_a_code_does_not_reach_the_message_whole(keyword: str) -> None:
    ds = plain()
    text = "LAT Müller^Friederike 1961-03-04"
    ds[keyword] = DataElement(keyword, "CS", text, validation_mode=0)
    with pytest.raises(Refused) as caught:
        admit(ds, InputSettings())
    message = str(caught.value)
    assert "1961" not in message
    assert "FRIEDERIKE" not in message.upper()
    assert "\n" not in message


KEYWORDS = [
    *("SOPClassUID", "Modality", "ImageType", "PresentationIntentType", "BodyPartExamined"),
    *("ViewPosition", "PatientOrientation", "PatientAge", "PatientBirthDate", "StudyDate"),
    *("BurnedInAnnotation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PresentationLUTShape", "PixelPaddingValue", "PixelPaddingRangeLimit", "CollimatorShape"),
    *("CollimatorUpperHorizontalEdge", "CollimatorLowerHorizontalEdge", "ShutterShape"),
    *("CollimatorLeftVerticalEdge", "CollimatorRightVerticalEdge", "ShutterUpperHorizontalEdge"),
]

SEQUENCES = [
    *("SourceImageSequence", "ViewCodeSequence", "AnatomicRegionSequence"),
    *("ModalityLUTSequence", "VOILUTSequence"),
]

numbers = st.one_of(
    st.integers(-(2**33), 2**33),
    st.integers(-3, 70000),
    st.sampled_from([0, 1, 8, 12, 16, 65535]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([1e308, -1e308, 1e-320]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "RECTANGULAR", "INVERSE", "SIGMOID", "LINEAR_EXACT", "nan", "1E400", "L"]),
)
junk = st.one_of(
    st.none(),
    numbers,
    texts,
    st.binary(max_size=8),
    st.lists(st.one_of(numbers, texts), max_size=4),
)


@st.composite
def junk_item(draw: st.DrawFn) -> Dataset:
    """An item with a lookup table or codes whose values make no sense."""
    item = Dataset()
    for keyword in draw(
        st.sets(st.sampled_from(["LUTDescriptor", "LUTData", "CodeValue", "CodeMeaning"]))
    ):
        small = st.lists(st.integers(-70000, 70000), max_size=5)
        put(item, keyword, draw(st.one_of(junk, small, st.just([4096, 0, 12]))))
    return item


def put(ds: Dataset, keyword: str, value: Any) -> None:
    """Sets an attribute without a check, or as raw bytes that pydicom has not converted yet."""
    vr = {"US or SS": "US", "US or OW": "OW"}.get(dictionary_VR(keyword), dictionary_VR(keyword))
    try:
        ds[keyword] = DataElement(keyword, vr, value, validation_mode=0)
    except (TypeError, ValueError, AttributeError, OverflowError):
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
        tag = Tag(keyword)
        ds[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True, True)


JUNK = [
    *(None, "", "abc", b"\x01\x02", [], ["a"], [1, 2], [1.5, None], -7, 3.5, 2**33, 1e308),
    *(float("nan"), float("inf")),
]


def test_junk_in_one_attribute_is_read_or_refused() -> None:
    """Every attribute with every kind of junk. Some junk is harmless, some is refused."""
    reasons: list[Reason | None] = []
    for keyword in KEYWORDS:
        for value in JUNK:
            ds = copy.deepcopy(SMALL)
            put(ds, keyword, value)
            try:
                Radiograph.from_dataset(ds, STRICT)
            except Refused as refused:
                reasons.append(refused.reason)
            else:
                reasons.append(None)
    assert reasons.count(None) > 50
    assert len(set(reasons)) > 8


STRICT = InputSettings(min_age_years=18, refuse_burned_in=True)
SMALL = write(Recipe())


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(KEYWORDS), junk, min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(SEQUENCES), st.lists(junk_item(), max_size=2), max_size=2),
)
def test_junk_is_read_or_refused(
    attributes: dict[str, Any], sequences: dict[str, list[Dataset]]
) -> None:
    ds = copy.deepcopy(SMALL)
    for keyword, value in {**attributes, **sequences}.items():
        put(ds, keyword, value)
    with contextlib.suppress(Refused):  # and nothing else
        radiograph = Radiograph.from_dataset(ds, STRICT)
        assert radiograph.pixels.min() >= 0
        assert radiograph.pixels.max() <= 1


@settings(max_examples=60)
@given(st.data())
@pytest.mark.parametrize(
    "codec", ["rle", "jpeg-baseline", "jpeg-lossless-sv1", "jpegls", "jpeg2000"]
)
def test_damaged_codestream_is_read_or_refused(codec: str, data: st.DataObject) -> None:
    ds = write(Recipe(codec=codec, bits=8))
    frame = bytearray(next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)))
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(60, len(frame) - 1))] = data.draw(st.integers(0, 255))
    if codec != "jpegls":  # CharLS searches gigabytes of zeros for the end, for seconds
        frame = frame[: data.draw(st.integers(len(frame) // 2, len(frame)))]
    ds.PixelData = pydicom.encaps.encapsulate([bytes(frame)])
    with contextlib.suppress(Refused):  # and nothing else
        radiograph = Radiograph.from_dataset(ds, InputSettings())
        assert radiograph.pixels.shape == (ds.Rows, ds.Columns)
