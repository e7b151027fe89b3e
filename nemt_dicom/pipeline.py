"""From a received file to its outputs: the one path that the worker and `explain` share."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import ImplicitVRLittleEndian

from nemt_dicom.config import InputSettings, OutputSettings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.header import dataset_offset
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.explanation import Explanation
from nemt_dicom.outputs.derived import Origin, Output
from nemt_dicom.outputs.secondary_capture import build_secondary_capture
from nemt_dicom.outputs.segmentation import build_fractional, build_segmentation


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A received image. dataset: its header, without pixel data.

    digest: SHA-256 of the dataset as received, without preamble and file meta information.
    """

    dataset: Dataset
    radiograph: Radiograph
    digest: str


def read_source(path: Path, settings: InputSettings) -> Source:
    """Reads and decodes a file, with or without file meta information.

    Raises `Refused` with the reason where it is not a radiograph that can be explained, `OSError`
    where the file cannot be read.
    """
    raw = path.read_bytes()
    with disable_value_validation():  # its warnings quote values, and so patients
        try:
            dataset = dcmread(BytesIO(raw), force=True)
        except (InvalidDicomError, EOFError, ValueError, KeyError, NotImplementedError) as error:
            kind = type(error).__name__
            raise Refused(Reason.UNPARSABLE, f"not a DICOM file ({kind})") from error
        if not dataset.preamble and "SOPClassUID" not in dataset:
            raise Refused(Reason.UNPARSABLE, "not a DICOM file")
        if "TransferSyntaxUID" not in dataset.file_meta:
            if dataset.original_encoding[1] is False:
                raise Refused(Reason.TRANSFER_SYNTAX, "big endian is not supported")
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not dataset.get(keyword):
                raise Refused(Reason.MISSING_ATTRIBUTE, f"{keyword} is missing")
        radiograph = Radiograph.from_dataset(dataset, settings)
    del dataset.PixelData
    start = dataset_offset(BytesIO(raw)) if dataset.preamble else 0
    digest = hashlib.sha256(memoryview(raw)[start:]).hexdigest()
    return Source(dataset=dataset, radiograph=radiograph, digest=digest)


def build_outputs(
    source: Source, explanation: Explanation, *, settings: OutputSettings, received: datetime
) -> tuple[Output, ...]:
    """The SEG and the SC of one explanation, and the fractional SEG where it is configured.

    received: time of receipt, with a time zone. The same arguments give the same bytes.
    """
    origin = Origin(
        source=source.dataset,
        digest=source.digest,
        explanation=explanation,
        settings=settings,
        received=received,
    )
    with disable_value_validation():
        outputs = [
            build_segmentation(origin),
            build_secondary_capture(origin, source.radiograph.pixels, source.radiograph.aspect),
        ]
        if settings.seg_fractional:
            outputs.append(build_fractional(origin))
    return tuple(outputs)
