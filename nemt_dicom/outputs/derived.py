"""The common part of all outputs: identity, copied attributes, equipment, references.

Sources: PS3.3 C.7 (patient, study, series, equipment, general image), C.12.1 (SOP common).
Only the attributes in `COPIED` are copied from the source, and never a private element.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from io import BytesIO
from typing import Any

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr.coding import CodedConcept
from pydicom import Dataset

from nemt_dicom import __version__
from nemt_dicom.config import OutputSettings
from nemt_dicom.intake.uid import UNUSABLE
from nemt_dicom.model.explanation import Explanation
from nemt_dicom.outputs.identity import make_uid
from nemt_dicom.outputs.repair import UTF_8, character_set, comes_back, copied
from nemt_dicom.state.records import Output

MANUFACTURER = "NEMt DICOM"
MODEL_NAME = "nemt-dicom"
DISCLAIMER = "NOT FOR DIAGNOSTIC USE"

SEGMENTATION = CodedConcept("113076", "DCM", "Segmentation")
SOURCE_IMAGE = CodedConcept("121322", "DCM", "Source image for image processing operation")
PROCESSING_EQUIPMENT = CodedConcept("109102", "DCM", "Processing Equipment")
ARTIFICIAL_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Written empty if the source has no value; highdicom needs them to exist."""
COPIED = (
    *TYPE_2,
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyInstanceUID",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "RequestAttributesSequence",
    "BodyPartExamined",
    "PatientOrientation",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "BurnedInAnnotation",
)
"""All attributes that outputs copy from the source."""

CHEST_PARTS = frozenset(
    {
        *("CHEST", "CHESTABDOMEN", "CHESTABDPELVIS"),
        *("NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV"),
    }
)
"""Body parts of PS3.16 Annex L that have no side. For any other, dciodvfy asks for Laterality
(PS3.3 C.7.3.1, type 2C). Outputs then say CHEST: the image was admitted as one of the chest.
"""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Everything that an output is made from.

    source: the header of the received image.
    digest: SHA-256 of its dataset as received.
    explanation: of the image.
    settings: of the outputs.
    received: time of receipt, with a time zone.
    """

    source: Dataset
    digest: str
    explanation: Explanation
    settings: OutputSettings
    received: datetime

    def uid(self, kind: str, part: str = "instance", index: int = 1) -> str:
        """A UID that is the same whenever the same explanation is written again: `make_uid`."""
        return make_uid(
            source_uid=str(self.source.SOPInstanceUID),
            content_digest=self.digest,
            explanation=self.explanation,
            settings=self.settings,
            kind=kind,
            part=part,
            index=index,
        )

    @property
    def instance_number(self) -> int:
        """InstanceNumber of the source; 1 if it is absent, below 1 or no IS (PS3.5 6.2)."""
        try:
            number = int(self.source.get("InstanceNumber") or 1)
        except UNUSABLE:
            return 1
        return number if 0 < number < 2**31 else 1

    def moment(self) -> datetime:
        """The time of receipt in the time zone that the object's times are in (PS3.3 C.12.1)."""
        return self.received.astimezone(_time_zone(self.source))


def reference(source: Dataset) -> Dataset:
    """The copied attributes of the source, repaired.

    A value that is invalid for its VR is repaired (`51` -> `051Y`, `1995.07.20` -> `19950720`) or
    left out. A value that makes no sense is left out. For text in an unknown character set see
    `repair.character_set`.
    """
    clean = Dataset()
    terms, ascii_only = character_set(_received(source, "SpecificCharacterSet"))
    for keyword in COPIED:
        if keyword == "SpecificCharacterSet":
            continue
        value = copied(keyword, _received(source, keyword), ascii_only=ascii_only)
        if value is not None and _makes_sense(keyword, value):
            setattr(clean, keyword, value)
    if terms:
        clean.SpecificCharacterSet = terms
        if not comes_back(clean):
            clean.SpecificCharacterSet = UTF_8
    for keyword in TYPE_2:
        if keyword not in clean:
            setattr(clean, keyword, "")
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(clean, keyword, str(source[keyword].value))
    clean.Modality = str(source.get("Modality") or "OT")
    clean.Rows, clean.Columns = int(source.Rows), int(source.Columns)
    if "LossyImageCompression" not in clean:
        remove(clean, "LossyImageCompressionRatio", "LossyImageCompressionMethod")
    if "FrameOfReferenceUID" not in clean:
        remove(clean, "PositionReferenceIndicator")
    elif "PositionReferenceIndicator" not in clean:
        clean.PositionReferenceIndicator = ""
    return clean


def _received(source: Dataset, keyword: str) -> Any:
    """The value as pydicom reads it; None if it cannot be read."""
    try:
        return source.get(keyword)
    except UNUSABLE:
        return None


def _makes_sense(keyword: str, value: Any) -> bool:
    """Whether a valid value is one that this attribute can have in an output.

    PatientSex: PS3.3 C.7.1.1. BodyPartExamined: see `CHEST_PARTS`. PatientOrientation: two
    directions, C.7.6.1.1.1.
    """
    match keyword:
        case "PatientSex":
            return value in {"M", "F", "O"}
        case "BodyPartExamined":
            return value in CHEST_PARTS
        case "LossyImageCompression":
            return bool(value == "01")
        case "BurnedInAnnotation":
            return bool(value == "YES")
        case "PatientOrientation":
            return value[0] != value[1] and all(map(_is_direction, value))
        case _:
            return True


def _is_direction(text: str) -> bool:
    """Whether `text` is a direction in the patient: at most one letter of each axis."""
    axes = [axis for letter in text for axis in ("LR", "AP", "HF") if letter in axis]
    return len(text) == len(axes) == len(set(axes)) > 0


def remove(dataset: Dataset, *keywords: str) -> None:
    for keyword in keywords:
        dataset.pop(keyword, None)


def pixel_spacing(source: Dataset) -> tuple[float, float] | None:
    r"""PixelSpacing in mm, between rows and between columns; None if it is absent or like `0\0`."""
    try:
        rows, columns = (float(value) for value in source.PixelSpacing)
    except UNUSABLE:
        return None
    return (rows, columns) if min(rows, columns) >= 0.001 and max(rows, columns) <= 100 else None


def equipment(explanation: Explanation) -> dict[str, Any]:
    """Constructor arguments of highdicom for the equipment modules (PS3.3 C.7.5)."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL_NAME,
        "software_versions": [__version__, f"bundle {_bundle_version(explanation)}"],
        "device_serial_number": explanation.provenance.short_digest,
    }


def algorithm(explanation: Explanation) -> AlgorithmIdentificationSequence:
    """Algorithm Identification (PS3.3 10.16)."""
    return AlgorithmIdentificationSequence(
        name=f"NEMt {explanation.provenance.bundle_name}",
        family=ARTIFICIAL_INTELLIGENCE,
        version=_bundle_version(explanation),
        source=MANUFACTURER,
    )


def _bundle_version(explanation: Explanation) -> str:
    return f"{explanation.provenance.bundle_version} {explanation.provenance.short_digest}"


def describe(explanation: Explanation) -> str:
    """DerivationDescription: target, verdict, probabilities, thresholds, bundle, model. ASCII."""
    e, p = explanation.evidence, explanation.provenance
    return (
        f"NEMt explanation of {p.target}: {explanation.verdict.value}; "
        f"p {e.probability:.3f}, segment occluded {e.occluded:.3f}, only segment {e.kept:.3f}; "
        f"decision threshold {p.decision_threshold:.3f}, mask threshold {p.mask_threshold:.3f}, "
        f"evidence margin {p.evidence_margin:.3f}; bundle {p.bundle_name} {p.bundle_version} "
        f"{p.model_digest}. {DISCLAIMER}"
    )


def series_description(target: str) -> str:
    """SeriesDescription, 64 characters at most (LO): a longer target is cut."""
    text = f"NEMt {{}} explanation - {DISCLAIMER}"
    return text.format(target[: 64 - len(text.format(""))])


def finish(dataset: Dataset, origin: Origin, clean: Dataset) -> None:
    """Writes the common part of all outputs into `dataset`.

    clean: the result of `reference`. Overwrites highdicom's clock times, so that a retry gives
    the same bytes.
    """
    moment = origin.moment()
    day, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    for group in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{group}Date", day)
        setattr(dataset, f"{group}Time", time)
    for keyword in COPIED:
        if keyword in clean:
            dataset[keyword] = clean[keyword]
    dataset.InstanceNumber = origin.instance_number
    dataset.SeriesDescription = series_description(origin.explanation.provenance.target)
    if "BodyPartExamined" not in dataset:
        dataset.BodyPartExamined = "CHEST"
    if "PatientOrientation" not in clean:
        dataset.PatientOrientation = ""
    dataset.DerivationDescription = describe(origin.explanation)
    dataset.DerivationCodeSequence = [SEGMENTATION]
    dataset.SourceImageSequence = [_source_image(clean)]
    dataset.ContributingEquipmentSequence = [_contribution(origin.explanation)]
    if "Laterality" in dataset:
        del dataset.Laterality


def to_output(dataset: Dataset, kind: str) -> tuple[Output, bytes]:
    """Serialises a finished dataset; returns its record and its bytes, a whole file (PS3.10)."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    output = Output(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        blob=hashlib.sha256(data).hexdigest(),
    )
    return output, data


def _source_image(clean: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = clean.SOPClassUID
    item.ReferencedSOPInstanceUID = clean.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [SOURCE_IMAGE]
    return item


def _contribution(explanation: Explanation) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [PROCESSING_EQUIPMENT]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = MODEL_NAME
    item.SoftwareVersions = [__version__, f"bundle {_bundle_version(explanation)}"]
    item.ContributionDescription = f"Explanation of a classifier's output. {DISCLAIMER}"
    return item


def _time_zone(source: Dataset) -> tzinfo | None:
    """TimezoneOffsetFromUTC as a time zone; None for the time zone of this machine."""
    match = re.fullmatch(
        r"([+-])(\d{2})(\d{2})", str(_received(source, "TimezoneOffsetFromUTC") or "")
    )
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    if offset > timedelta(hours=14):
        return None
    return timezone(-offset if match[1] == "-" else offset)
