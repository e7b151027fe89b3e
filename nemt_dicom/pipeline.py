"""From received bytes to outputs: the one path that the worker and `explain` share.

`Engine` is the interface for the worker. `PipelineEngine` is the real engine; importing this file
loads torch and the pixel decoders.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Protocol

from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import ImplicitVRLittleEndian

from nemt_dicom.config import InputSettings, OutputSettings, Settings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.header import dataset_offset
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.intake.uid import UNREADABLE, UNUSABLE
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.explanation import Explanation
from nemt_dicom.outputs.derived import Origin
from nemt_dicom.outputs.secondary_capture import build_secondary_capture, render
from nemt_dicom.outputs.segmentation import build_fractional, build_segmentation
from nemt_dicom.state.records import Output

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A received image.

    dataset: its header, without pixel data.
    radiograph: its pixels, decoded.
    """

    dataset: Dataset
    radiograph: Radiograph


def read_source(data: bytes, settings: InputSettings) -> Source:
    """Reads and decodes the bytes of a file, with or without file meta information.

    Raises `Refused` with the reason if it is not a radiograph that can be explained.
    """
    with disable_value_validation():  # its warnings quote values, and so patients
        try:
            dataset = dcmread(BytesIO(data), force=True)
        except UNREADABLE as error:
            kind = type(error).__name__
            raise Refused(Reason.UNPARSABLE, f"not a DICOM file ({kind})") from error
        if not dataset.preamble and "SOPClassUID" not in dataset:
            raise Refused(Reason.UNPARSABLE, "not a DICOM file")
        if "TransferSyntaxUID" not in dataset.file_meta:
            if dataset.original_encoding[1] is False:
                raise Refused(Reason.TRANSFER_SYNTAX, "big endian is not supported")
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not _is_there(dataset, keyword):
                raise Refused(Reason.MISSING_ATTRIBUTE, f"{keyword} is missing")
        radiograph = Radiograph.from_dataset(dataset, settings)
    del dataset.PixelData
    return Source(dataset=dataset, radiograph=radiograph)


def _is_there(dataset: Dataset, keyword: str) -> bool:
    try:
        return bool(dataset.get(keyword))
    except UNUSABLE as error:
        kind = type(error).__name__
        detail = f"{keyword} has no usable value ({kind})"
        raise Refused(Reason.INVALID_ATTRIBUTE, detail) from error


def content_digest(data: bytes) -> str:
    """SHA-256 of the dataset in a file, without preamble and file meta information.

    It is the digest that the receiver puts into the database. Raises `Refused` if the file meta
    information has no length.
    """
    start = dataset_offset(BytesIO(data)) if data[128:132] == b"DICM" else 0
    return hashlib.sha256(memoryview(data)[start:]).hexdigest()


def build_outputs(
    source: Source,
    explanation: Explanation,
    *,
    settings: OutputSettings,
    digest: str,
    received: datetime,
) -> list[tuple[Output, bytes]]:
    """The SEG and the SC of one explanation, and the fractional SEG if it is configured.

    Each comes with its bytes, a whole file (PS3.10). The same arguments give the same bytes.

    digest: the source's `content_digest`.
    received: time of receipt, with a time zone.
    """
    origin = Origin(
        source=source.dataset,
        digest=digest,
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
    return outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A DICOM file and its explanation, for notebooks.

    radiograph: the image as a display shows it; `radiograph.pixels` (rows, columns) float32 in
        [0, 1], 1 = white.
    explanation: `explanation.mask` (rows, columns) float32 in [0, 1], 1 = evidence;
        `explanation.evidence.probability`; `explanation.verdict`.
    """

    radiograph: Radiograph
    explanation: Explanation

    def picture(self, longest_side: int = 1024) -> Image.Image:
        """The overlay with its legend, RGB: the picture inside the Secondary Capture.

        longest_side: pixels of the radiograph's longest side in the picture.
        """
        radiograph = self.radiograph
        picture, _ = render(self.explanation, radiograph.pixels, longest_side, radiograph.aspect)
        return picture


def explain_file(
    file: str | Path, *, bundle: str | Path | None = None, settings: Settings | None = None
) -> Explained:
    """Explains one DICOM file.

    bundle: folder of a model bundle; None is the bundle that ships.
    settings: the sections `input` and `explanation` apply; `bundle` wins over `explanation.bundle`.

    The model is loaded at each call. For many files, make one `Explainer` and give it radiographs.
    Raises `Refused` if the file is not a radiograph that can be explained, `BundleError` for a
    bundle that cannot be used, `OSError` if the file cannot be read.
    """
    settings = settings or Settings()
    folder = settings.explanation.bundle if bundle is None else Path(bundle)
    explainer = Explainer(Bundle.load_served(folder), settings.explanation)
    radiograph = read_source(Path(file).read_bytes(), settings.input).radiograph
    (explanation,) = explainer.explain([radiograph])
    return Explained(radiograph=radiograph, explanation=explanation)


class Engine(Protocol):
    """Explains in the worker: the real pipeline, or a stand-in of a test."""

    @property
    def device(self) -> str:
        """The name of the processor, for people."""

    @property
    def bundle(self) -> str:
        """The model bundle: name, version, digest."""

    def read(self, data: bytes) -> Source:
        """Reads the bytes of a received file. Raises `Refused`."""

    def explain(self, sources: Sequence[Source]) -> list[Explanation]:
        """One explanation for each source, in order. Raises `BadOutput`."""

    def build(
        self, source: Source, explanation: Explanation, *, digest: str, received: datetime
    ) -> Sequence[tuple[Output, bytes]]:
        """The outputs of one source, with their bytes; see `build_outputs`. Raises `BadOutput`."""


EngineFactory = Callable[[Settings], Engine]
"""Makes the engine in the worker process; picklable. Raises `BundleError`."""


class PipelineEngine:
    """The real engine."""

    def __init__(self, settings: Settings) -> None:
        """Loads the bundle and replays its golden image. Raises `BundleError`."""
        self._settings = settings
        bundle = Bundle.load_served(settings.explanation.bundle)
        if bundle.evaluation is None:
            LOGGER.warning(
                "bundle %s says nothing of how good its explanations are: "
                "nemt-eval --bundle %s --data DIR --out DIR --into-bundle",
                bundle.model_digest[:12],
                bundle.folder,
            )
        self._explainer = Explainer(bundle, settings.explanation)

    @property
    def device(self) -> str:
        return self._explainer.device_name

    @property
    def bundle(self) -> str:
        bundle = self._explainer.bundle
        manifest = bundle.manifest
        return f"{manifest.name} {manifest.version} ({bundle.model_digest[:12]})"

    def read(self, data: bytes) -> Source:
        return read_source(data, self._settings.input)

    def explain(self, sources: Sequence[Source]) -> list[Explanation]:
        return self._explainer.explain([source.radiograph for source in sources])

    def build(
        self, source: Source, explanation: Explanation, *, digest: str, received: datetime
    ) -> Sequence[tuple[Output, bytes]]:
        settings = self._settings.output
        return build_outputs(
            source, explanation, settings=settings, digest=digest, received=received
        )
