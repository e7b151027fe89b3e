"""Decides from the header whether a dataset is a frontal chest radiograph.

An absent attribute refuses nothing, because real chest files lack body part, view, age and
PatientID. A present attribute refuses the dataset if it names another body part or view.
"""

import re
from typing import Any
from unicodedata import combining, normalize

from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.uid import value_of

SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""SOP classes that may hold a chest radiograph. The listener accepts them."""

CHEST_WORDS = ("CHEST", "THORAX", "TORAX", "TORACE", "LUNG")
"""BodyPartExamined is a chest if it contains one of these words."""
CHEST_CODES = frozenset({"51185008", "43799004", "39607008", "T-D3000", "T-28000"})
"""Codes of AnatomicRegionSequence for thorax, thoracic cavity and lung (SNOMED CT, SNOMED-RT)."""

OBLIQUE_WORD = re.compile(r"LAO|RAO|LPO|RPO|LLO|RLO|OBL|[A-Z]*OBLI[A-Z]*")
"""Matches a word for an oblique view."""
LATERAL_WORD = re.compile(
    r"LL|RL|LAT[A-Z]*|(?!BILAT|FLAT$)[A-Z]*LAT(?:ERAL[A-Z]*)?|(?:PROFIL|PERFIL|SEITL|SAGIT)[A-Z]*"
)
"""Matches a word for a lateral view, in several languages; not FLAT (supine) and not BILAT."""
NON_FRONTAL_CODES = frozenset(
    {
        *("30730003", "G-A145", "399325008", "R-10254"),  # sagittal
        *("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232"),  # lateral
        *("399260004", "R-10224", "399352003", "R-10228"),  # medio-lateral, latero-medial
        *("399182000", "R-102C1", "399184004", "R-10238", "399236003", "R-10234"),  # oblique
        *("399135007", "R-10220", "399356000", "R-40985"),  # anterior oblique
        *("399006002", "R-10212", "399038007", "R-10210"),  # posterior oblique
        *("399312000", "R-10208", "399059000", "R-10216"),  # AP and PA oblique
        *("399160007", "R-10204"),  # frontal oblique
        *("260427002", "R-40783", "260426006", "R-40782"),  # lateral or medial oblique
        *("399368009", "R-10226", "399099002", "R-10230"),  # medio-lateral oblique and back
        *("399004004", "R-10246", "399132005", "R-10252"),  # oblique axial
        *("399225005", "R-10250", "399288005", "R-10248"),  # oblique caudo-cranial and back
    }
)
"""Codes of lateral and oblique views in PS3.16 CID 4010 (SNOMED CT, SNOMED-RT)."""

UNCOMPRESSED_PREDECESSOR = "121320"
"""PurposeOfReferenceCodeSequence of an image that was only compressed (PS3.16 CID 7202)."""


def admit(dataset: Dataset, settings: InputSettings) -> None:
    """Raises `Refused` with the first reason not to explain this dataset.

    Order of the checks: SOP class and modality, pixel description, body part, view, patient. No
    pixel is decoded. A value of the wrong type may raise an error of pydicom.
    """
    _kind(dataset, settings)
    _pixel_description(dataset, settings)
    _body_part(dataset)
    _view(dataset)
    _patient(dataset, settings)


def _kind(dataset: Dataset, settings: InputSettings) -> None:
    sop_class = dataset.get("SOPClassUID")
    modality = str(dataset.get("Modality") or "")
    if sop_class not in SOP_CLASSES:
        raise Refused(Reason.SOP_CLASS, "the object is not a CR, DX or Secondary Capture image")
    if sop_class == SecondaryCaptureImageStorage and _is_derived(dataset, modality):
        raise Refused(Reason.DERIVED_OUTPUT, "the Secondary Capture is derived from another image")
    if modality not in {"CR", "DX"}:
        raise Refused(Reason.NOT_CR_DX, f"Modality is {_shown(modality)}, not CR or DX")
    for_processing = (
        sop_class == DigitalXRayImageStorageForProcessing
        or dataset.get("PresentationIntentType") == "FOR PROCESSING"
    )
    if for_processing and not settings.accept_for_processing:
        raise Refused(Reason.FOR_PROCESSING, "For Processing; send the For Presentation image")


def _is_derived(dataset: Dataset, modality: str) -> bool:
    """Whether this is a result of this service or of another system.

    Explaining a result would make a feedback loop.
    """
    if "DERIVED" not in _texts(dataset.get("ImageType")):
        return False
    sources = dataset.get("SourceImageSequence") or ()
    purposes = {
        str(code.get("CodeValue"))
        for source in sources
        for code in source.get("PurposeOfReferenceCodeSequence") or ()
    }
    return bool(sources) and (modality == "OT" or purposes != {UNCOMPRESSED_PREDECESSOR})


def _pixel_description(dataset: Dataset, settings: InputSettings) -> None:
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation"):
        if dataset.get(keyword) in (None, ""):
            raise Refused(Reason.MISSING_ATTRIBUTE, f"{keyword} is missing")
    if "PixelData" not in dataset:
        raise Refused(Reason.NO_PIXEL_DATA, "Pixel Data is missing")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise Refused(Reason.MULTI_FRAME, "the image has more than one frame")
    monochrome = str(dataset.PhotometricInterpretation) in {"MONOCHROME1", "MONOCHROME2"}
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or not monochrome:
        raise Refused(Reason.COLOUR, "not MONOCHROME1 or MONOCHROME2 with one sample per pixel")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if min(rows, columns) < 32:
        raise Refused(Reason.INVALID_SIZE, f"{rows} x {columns} pixels; each side needs 32 or more")
    if max(rows, columns) > 10 * min(rows, columns):
        raise Refused(Reason.INVALID_SIZE, f"{rows} x {columns} is not the shape of a radiograph")
    if rows * columns > settings.max_megapixels * 1e6:
        raise Refused(Reason.TOO_LARGE, f"{rows} x {columns} pixels exceed input.max_megapixels")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(value_of(dataset, "HighBit", stored - 1))
    if (
        allocated not in {8, 16}
        or not 1 < stored <= allocated
        or not stored <= high + 1 <= allocated
    ):
        raise Refused(
            Reason.INVALID_ATTRIBUTE,
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} do not fit together",
        )


def _body_part(dataset: Dataset) -> None:
    part = str(dataset.get("BodyPartExamined") or "").upper()
    if part:
        if not any(word in part for word in CHEST_WORDS):
            raise Refused(Reason.NOT_CHEST, f"BodyPartExamined is {_shown(part)}")
        return
    codes = {str(item.get("CodeValue")) for item in dataset.get("AnatomicRegionSequence") or ()}
    if codes and not codes & CHEST_CODES:
        raise Refused(Reason.NOT_CHEST, f"AnatomicRegionSequence is {_shown(min(codes))}")


def _view(dataset: Dataset) -> None:
    view = str(dataset.get("ViewPosition") or "")
    if not _may_be_frontal(view):
        raise Refused(Reason.LATERAL_VIEW, f"ViewPosition is {_shown(view)}")
    for item in dataset.get("ViewCodeSequence") or ():
        meaning = str(item.get("CodeMeaning") or "")
        coded = str(item.get("CodeValue") or "").strip() in NON_FRONTAL_CODES
        if (coded and not _is_decubitus(meaning)) or not _may_be_frontal(meaning):
            raise Refused(Reason.LATERAL_VIEW, "ViewCodeSequence is not a frontal view")
    if {text[:1] for text in _texts(dataset.get("PatientOrientation"))} & {"A", "P"}:
        raise Refused(Reason.LATERAL_VIEW, "PatientOrientation is not a frontal view")


def _may_be_frontal(view: str) -> bool:
    """Whether no word of `view` names a lateral or oblique view.

    A lateral decubitus may be frontal: the patient lies on the side, the beam is frontal.
    """
    words = re.findall("[A-Z]+", _plain(view))
    if any(OBLIQUE_WORD.fullmatch(word) for word in words):
        return False
    return _is_decubitus(view) or not any(LATERAL_WORD.fullmatch(word) for word in words)


def _is_decubitus(view: str) -> bool:
    return "DECUB" in _plain(view)


def _plain(text: str) -> str:
    """`text` in upper case without accents."""
    return "".join(c for c in normalize("NFKD", text.upper()) if not combining(c))


def _patient(dataset: Dataset, settings: InputSettings) -> None:
    if settings.min_age_years is not None:
        age = age_years(dataset)
        if age is not None and age < settings.min_age_years:
            raise Refused(Reason.BELOW_MINIMUM_AGE, "younger than input.min_age_years")
    if settings.refuse_burned_in and dataset.get("BurnedInAnnotation") == "YES":
        raise Refused(Reason.BURNED_IN, "BurnedInAnnotation is YES")


def age_years(dataset: Dataset) -> float | None:
    """Age in years; None if it is unknown.

    From PatientAge (VR AS, or a number of years without a unit). Without it, from PatientBirthDate
    and StudyDate.
    """
    match = re.fullmatch(r"\s*(\d{1,3})\s*([DWMY]?)\s*", str(dataset.get("PatientAge") or ""))
    if match:
        per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0, "": 1.0}[match[2]]
        return int(match[1]) / per_year
    born, studied = (_days(dataset.get(name)) for name in ("PatientBirthDate", "StudyDate"))
    return None if born is None or studied is None else max(0.0, (studied - born) / 365.25)


def _days(value: Any) -> float | None:
    """A DICOM date as an approximate number of days; None if it is not a date."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", str(value or ""))
    if match is None:
        return None
    return int(match[1]) * 365.25 + (int(match[2]) - 1) * 30.44 + int(match[3])


def _texts(value: Any) -> tuple[str, ...]:
    """The values of a text attribute with one value, several values or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def _shown(text: str) -> str:
    """A code string for a message: printable, at most 16 characters, so no patient data fit in."""
    clean = re.sub(r"[^A-Z0-9 _.-]", "?", text.upper())[:16]
    return clean or "empty"
