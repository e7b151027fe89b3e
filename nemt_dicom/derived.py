"""What both outputs share: identity, what is copied from the source, equipment, references.

Sources: PS3.3 C.7 (patient, study, series, equipment, general image), C.12.1 (SOP common).
Nothing of the source is copied but what `COPIED` lists, and never a private element.
"""

import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from io import BytesIO
from typing import Any

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr.coding import CodedConcept
from pydicom import DataElement, Dataset
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.sequence import Sequence
from pydicom.valuerep import DSfloat, validate_value

from nemt_dicom import __version__
from nemt_dicom.config import OutputSettings
from nemt_dicom.explanation import Explanation

NEMT_NAMESPACE = uuid.UUID("6d8e2b4c-0f5a-5c1e-9a53-1d0b7c4e8f21")

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
"""Written empty where the source has none; highdicom needs them to exist."""
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
"""The whole list of what outputs take over from the source."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One object, ready to be stored and sent. data: a whole DICOM file (PS3.10)."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an output is made from.

    source: the header of the received image. digest: SHA-256 of its dataset as received.
    received: when it was received, with a time zone.
    """

    source: Dataset
    digest: str
    explanation: Explanation
    settings: OutputSettings
    received: datetime

    def uid(self, kind: str, part: str = "instance", index: int = 1) -> str:
        """A UID that is the same whenever the same explanation is written again (PS3.5 B.2).

        kind: "seg", "sc", "seg_fractional". part: "instance", "series" or another UID inside.
        The series leaves the content digest out: a PACS resends an image with changed content.
        Another release makes other bytes, so it has UIDs of its own. The time of receipt is left
        out: two services that receive one image do not show it twice.
        """
        key = [
            __version__,
            str(self.source.SOPInstanceUID),
            self.digest if part != "series" else "",
            self.explanation.provenance.bundle_digest,
            self._settings_digest(),
            kind,
            part,
            index,
        ]
        name = json.dumps(key, separators=(",", ":"))
        return f"2.25.{uuid.uuid5(NEMT_NAMESPACE, name).int}"

    def _settings_digest(self) -> str:
        settings = self.settings.model_dump(mode="json")
        settings["explain_below_threshold"] = self.explanation.explain_below_threshold
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def instance_number(self) -> int:
        """As the source's, 1 where it has none."""
        try:
            return max(1, int(self.source.get("InstanceNumber") or 1))
        except (TypeError, ValueError):
            return 1

    def moment(self) -> datetime:
        """The time of receipt in the time zone that the object's times are in (PS3.3 C.12.1)."""
        return self.received.astimezone(_time_zone(self.source))


def reference(source: Dataset) -> Dataset:
    """The copied attributes of the source, repaired: what outputs are built from.

    Values that are invalid for their VR are repaired (`51` -> `051Y`, `1995.07.20` ->
    `19950720`) or left out.
    """
    clean = Dataset()
    for keyword in COPIED:
        value = source.get(keyword)
        if value is None or (keyword == "BurnedInAnnotation" and value != "YES"):
            continue
        if isinstance(value, Sequence):
            setattr(clean, keyword, [_without_private(item) for item in value])
            continue
        repaired = _repaired(dictionary_VR(keyword_dict[keyword]), value)
        if repaired is not None:
            setattr(clean, keyword, repaired)
    for keyword in TYPE_2:
        if keyword not in clean:
            setattr(clean, keyword, "")
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(clean, keyword, str(source[keyword].value))
    clean.Modality = str(source.get("Modality") or "OT")
    clean.Rows, clean.Columns = int(source.Rows), int(source.Columns)
    if clean.get("LossyImageCompression") != "01":
        for keyword in ("Compression", "CompressionRatio", "CompressionMethod"):
            if f"LossyImage{keyword}" in clean:
                delattr(clean, f"LossyImage{keyword}")
    return clean


def pixel_spacing(source: Dataset) -> tuple[float, float] | None:
    r"""PixelSpacing in mm, between rows and between columns, where it is one; RG1's 0\0 is none."""
    try:
        rows, columns = (float(value) for value in source.PixelSpacing)
    except (AttributeError, TypeError, ValueError):
        return None
    return (rows, columns) if min(rows, columns) >= 0.001 and max(rows, columns) <= 100 else None


def decimal(value: float) -> DSfloat:
    """A DS value of 16 characters at most (PS3.5 6.2), true to 1 part in 10^10."""
    return DSfloat(f"{value:.10g}")


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
    """DerivationDescription: target, verdict, probabilities, thresholds, bundle. ASCII."""
    e, p = explanation.evidence, explanation.provenance
    return (
        f"NEMt explanation of {p.target}: {explanation.verdict.value}; "
        f"p {e.probability:.3f}, segment occluded {e.occluded:.3f}, only segment {e.kept:.3f}; "
        f"decision threshold {p.decision_threshold:.3f}, mask threshold {p.mask_threshold:.3f}, "
        f"evidence margin {p.evidence_margin:.3f}; bundle {p.bundle_name} {p.bundle_version} "
        f"{p.bundle_digest}. {DISCLAIMER}"
    )


def series_description(target: str) -> str:
    """SeriesDescription, 64 characters at most (LO): a longer target is cut."""
    text = f"NEMt {{}} explanation - {DISCLAIMER}"
    return text.format(target[: 64 - len(text.format(""))])


def finish(dataset: Dataset, origin: Origin, clean: Dataset) -> None:
    """Writes what both outputs have in common into `dataset`.

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
    if "PatientOrientation" not in dataset:
        dataset.PatientOrientation = ""
    dataset.DerivationDescription = describe(origin.explanation)
    dataset.DerivationCodeSequence = [SEGMENTATION]
    dataset.SourceImageSequence = [_source_image(clean)]
    dataset.ContributingEquipmentSequence = [_contribution(origin.explanation)]
    if "Laterality" in dataset:
        del dataset.Laterality


def to_output(dataset: Dataset, kind: str) -> Output:
    """Serialises a finished dataset."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return Output(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        study_instance_uid=str(dataset.StudyInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        data=buffer.getvalue(),
    )


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


def _without_private(item: Dataset) -> Dataset:
    """A copy of a sequence item with standard, valid attributes only."""
    copy = Dataset()
    for element in item:
        if element.tag.is_private:
            continue
        if element.VR == "SQ":
            copy.add(DataElement(element.tag, "SQ", [_without_private(i) for i in element.value]))
        elif (value := _repaired(element.VR, element.value)) is not None:
            copy.add(DataElement(element.tag, element.VR, value))
    return copy


def _repaired(vr: str, value: Any) -> Any:
    """A value that is valid for its VR (PS3.5 6.2), or None."""
    text = str(value).strip() if isinstance(value, str) else value
    if (
        vr == "AS"
        and isinstance(text, str)
        and (match := re.fullmatch(r"(\d{1,3})([DWMY]?)", text))
    ):
        text = f"{int(match[1]):03d}{match[2] or 'Y'}"
    elif vr == "DA" and isinstance(text, str):
        text = text.replace(".", "")
    elif vr == "TM" and isinstance(text, str):
        text = text.replace(":", "")
    elif vr == "DS" and text not in ("", None):
        try:
            numbers = [decimal(float(n)) for n in (text if _is_multi(text) else [text])]
        except (TypeError, ValueError, OverflowError):
            return None
        return numbers if _is_multi(text) else numbers[0]
    values = list(text) if _is_multi(text) else [text]
    try:
        for single in values:
            validate_value(vr, single, RAISE)
    except (ValueError, TypeError):
        return None
    return text


def _is_multi(value: Any) -> bool:
    return (
        hasattr(value, "__iter__")
        and not isinstance(value, str | bytes)
        and not hasattr(value, "components")
    )


def _time_zone(source: Dataset) -> tzinfo | None:
    """TimezoneOffsetFromUTC as a time zone, None for the machine's own."""
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", str(source.get("TimezoneOffsetFromUTC") or ""))
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    if offset > timedelta(hours=14):
        return None
    return timezone(-offset if match[1] == "-" else offset)
