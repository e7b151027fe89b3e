"""One synthetic scene, and functions that write it as a DICOM file in many ways.

The scene is smooth, with a bright block near the upper left. So a turned, mirrored or inverted
image differs from it. `light()` goes below 0 and above 1; a display shows the clipped `scene()`. A
`Recipe` describes how the scene is stored. `write` inverts the display pipeline to get the stored
values; it shares no formula with the code under test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

ROWS, COLUMNS = 150, 120
BLOCK = (slice(25, 55), slice(18, 42))  # rows, columns: bright, clipped by a window
DARK = (slice(100, 130), slice(70, 105))

GREY_LEVEL = 1 / 255


def light() -> np.ndarray:
    """(150, 120) float64 from -0.1 to 1.15: the signal of the detector."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    smooth = 0.5 + 0.25 * np.sin(x / 19.0) * np.cos(y / 31.0) + 0.15 * (y / ROWS - x / COLUMNS)
    smooth[BLOCK] = 1.15
    smooth[DARK] = -0.1
    return smooth


def scene() -> np.ndarray:
    """(150, 120) float64 from 0 to 1: the upright image on a display."""
    return np.clip(light(), 0.0, 1.0)


def turned(upright: np.ndarray, orientation: tuple[str, str]) -> np.ndarray:
    """The image of a detector with this PatientOrientation.

    It is written as a table of coordinates on purpose: it shares nothing with the code under test.
    """
    rows, columns = upright.shape
    sideways = orientation[0] in "LR"
    shape = (rows, columns) if sideways else (columns, rows)
    r, c = np.indices(shape)
    to_left, to_feet = (c, r) if sideways else (r, c)
    if "R" in orientation:
        to_left = columns - 1 - to_left
    if "H" in orientation:
        to_feet = rows - 1 - to_feet
    return upright[to_feet, to_left]


ORIENTATIONS = [(a, d) for a in "LR" for d in "FH"] + [(a, d) for a in "FH" for d in "LR"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the scene is stored.

    photometric: PhotometricInterpretation.
    bits: BitsStored.
    signed: whether the stored values have a sign.
    modality: None, "rescale", "negative" (slope) or "lut".
    voi: None, "LINEAR", "LINEAR_EXACT", "SIGMOID" or "lut".
    span: width of the modality values that a window shows.
    orientation: PatientOrientation.
    margin: pixels of padding around the scene.
    padding: (PixelPaddingValue, PixelPaddingRangeLimit or None). Both alternate in the margin.
    presentation_lut_shape: PresentationLUTShape; None for none.
    codec: "explicit", "implicit" or a key of `CODECS`.
    fragments: fragments of the encapsulated frame.
    offset_table: whether the Basic Offset Table has an entry.
    """

    photometric: str = "MONOCHROME2"
    bits: int = 12
    signed: bool = False
    modality: str | None = None
    voi: str | None = None
    span: float = 2000.0
    orientation: tuple[str, str] = ("L", "F")
    margin: int = 0
    padding: tuple[int, int | None] | None = None
    presentation_lut_shape: str | None = None
    codec: str = "explicit"
    fragments: int = 1
    offset_table: bool = True

    @property
    def shown(self) -> np.ndarray:
        """(rows, columns) the upright image on a display, no margin. SIGMOID never saturates."""
        return 0.02 + 0.96 * scene() if self.voi == "SIGMOID" else scene()


def stored_range(recipe: Recipe) -> tuple[int, int]:
    """Smallest and largest stored value of the scene. Padding uses the values beside this range."""
    low = -(1 << (recipe.bits - 1)) if recipe.signed else 0
    high = low + (1 << recipe.bits) - 1
    return (low + 20, high - 20) if recipe.padding else (low, high)


def _curve(position: np.ndarray) -> np.ndarray:
    """The curve of the modality LUT and the VOI LUT. It maps [0, 1] onto [0, 1]."""
    return 0.75 * position + 0.25 * position**2


def write(recipe: Recipe) -> Dataset:
    """The scene as a dataset that was written to a file and read back."""
    ds = _header(recipe)
    low, high = stored_range(recipe)
    steps = np.arange(low, high + 1)
    position = (steps - low) / (high - low)
    modality = _write_modality(ds, recipe, steps, position)
    shown = _write_voi(ds, recipe, modality)
    inverse = recipe.photometric == "MONOCHROME1" or recipe.presentation_lut_shape == "INVERSE"
    shown = 1 - shown if inverse else shown
    wanted = light() if recipe.voi in {"LINEAR", "LINEAR_EXACT"} else recipe.shown
    stored = _nearest(steps, shown, wanted)
    stored = np.pad(stored, recipe.margin)
    if recipe.padding is not None:
        first = recipe.padding[0]
        second = first if recipe.padding[1] is None else recipe.padding[1]
        edge = np.ones(stored.shape, bool)
        inner = slice(recipe.margin, -recipe.margin)
        edge[inner, inner] = False
        checks = np.indices(stored.shape).sum(axis=0) % 2 == 0
        stored[edge] = np.where(checks, first, second)[edge]
    stored = turned(stored, recipe.orientation)
    ds.Rows, ds.Columns = stored.shape
    ds.PatientOrientation = list(recipe.orientation)
    _encode(ds, recipe, stored)
    return through_file(ds)


def _header(recipe: Recipe) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.1", "2.25.2", "2.25.3"
    ds.PatientName, ds.PatientID = "SCENE^SYNTHETIC", "SCENE"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, recipe.photometric
    ds.BitsAllocated = 8 if recipe.bits <= 8 else 16
    ds.BitsStored, ds.HighBit = recipe.bits, recipe.bits - 1
    ds.PixelRepresentation = int(recipe.signed)
    if recipe.padding is not None:
        ds.add_new("PixelPaddingValue", "SS" if recipe.signed else "US", recipe.padding[0])
        if recipe.padding[1] is not None:
            vr = "SS" if recipe.signed else "US"
            ds.add_new("PixelPaddingRangeLimit", vr, recipe.padding[1])
    if recipe.presentation_lut_shape is not None:
        ds.PresentationLUTShape = recipe.presentation_lut_shape
    return ds


def _write_modality(
    ds: Dataset, recipe: Recipe, steps: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """The modality value of each stored value."""
    if recipe.modality is None:
        return steps.astype(float)
    if recipe.modality == "lut":
        table = np.rint(65535 * _curve(position)).astype("<u2")
        ds.ModalityLUTSequence = [lut_item(table, int(steps[0]), signed=recipe.signed, bits=16)]
        ds.ModalityLUTSequence[0].ModalityLUTType = "US"
        return table.astype(float)
    # The stored range becomes a little more than the range that a window of `span` shows.
    slope = 1.3 * recipe.span / (steps[-1] - steps[0])
    slope = -slope if recipe.modality == "negative" else slope
    ds.RescaleSlope, ds.RescaleIntercept = f"{slope:.9g}", f"{-0.2 * recipe.span:.9g}"
    ds.RescaleType = "US"
    return float(ds.RescaleSlope) * steps + float(ds.RescaleIntercept)


def _write_voi(ds: Dataset, recipe: Recipe, modality: np.ndarray) -> np.ndarray:
    """The brightness of each modality value before polarity. Windows are not clipped here."""
    low, high = float(modality.min()), float(modality.max())
    if recipe.voi is None:
        return (modality - low) / (high - low)
    if recipe.voi == "lut":
        first = int(np.floor(low))
        count = min(int(np.ceil(high)) - first + 1, 65535)
        table = np.rint(65535 * _curve(np.linspace(0, 1, count))).astype("<u2")
        ds.VOILUTSequence = [lut_item(table, first, signed=first < 0, bits=16)]
        index = np.clip(np.rint(modality) - first, 0, count - 1).astype(int)
        return table[index] / 65535.0
    # The window shows 0 at 10 % and 1 at 90 % of the range, so all of light() fits in.
    width = 0.8 * (high - low)
    centre = (low + high) / 2
    if recipe.voi == "SIGMOID":
        ds.WindowCenter, ds.WindowWidth = f"{centre:.9g}", f"{width / 2:.9g}"
        ds.VOILUTFunction = "SIGMOID"
        exponent = -4 * (modality - float(ds.WindowCenter)) / float(ds.WindowWidth)
        return 1 / (1 + np.exp(exponent))
    ds.WindowCenter, ds.WindowWidth = f"{centre:.9g}", f"{width:.9g}"
    centre, width = float(ds.WindowCenter), float(ds.WindowWidth)
    if recipe.voi == "LINEAR":  # the default function: the attribute is absent
        return (modality - (centre - 0.5)) / (width - 1) + 0.5
    ds.VOILUTFunction = recipe.voi
    return (modality - centre) / width + 0.5


def lut_item(table: np.ndarray, first: int, *, signed: bool, bits: int) -> Dataset:
    """An item of a modality or VOI LUT sequence. Entries have 16 bits, or 8 bits packed."""
    item = Dataset()
    count = 0 if table.size == 65536 else table.size
    item.add_new("LUTDescriptor", "SS" if signed else "US", [count, first, bits])
    data = table.tobytes()
    item.add_new("LUTData", "OW", data + b"\0" * (len(data) % 2))
    return item


def _nearest(steps: np.ndarray, shown: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The stored value whose brightness is nearest to `wanted`."""
    order = np.argsort(shown, kind="stable")
    position = np.searchsorted(shown[order], wanted)
    left, right = (
        order[np.clip(position - 1, 0, None)],
        order[np.clip(position, None, steps.size - 1)],
    )
    nearer = np.abs(shown[left] - wanted) <= np.abs(shown[right] - wanted)
    return steps[np.where(nearer, left, right)]


def _pattern(stored: np.ndarray, bits: int) -> np.ndarray:
    """The bit patterns of stored values, in the smallest unsigned type."""
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.ascontiguousarray((stored & ((1 << bits) - 1)).astype(dtype))


def _rle(stored: np.ndarray, bits: int) -> bytes:
    array = _pattern(stored, bits)
    return RLELosslessEncoder.encode(
        array,
        rows=array.shape[0],
        columns=array.shape[1],
        samples_per_pixel=1,
        bits_allocated=8 * array.itemsize,
        bits_stored=8 * array.itemsize,
        pixel_representation=0,
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
        encoding_plugin="pydicom",
    )


def _jpeg(**options: Any) -> Callable[[np.ndarray, int], bytes]:
    return lambda stored, bits: imagecodecs.jpeg8_encode(_pattern(stored, bits), **options)


def _jpeg_lossless(predictor: int) -> Callable[[np.ndarray, int], bytes]:
    return lambda stored, bits: imagecodecs.jpeg8_encode(
        _pattern(stored, bits), lossless=True, predictor=predictor, bitspersample=bits
    )


def _jpegls(near: int) -> Callable[[np.ndarray, int], bytes]:
    return lambda stored, bits: imagecodecs.jpegls_encode(_pattern(stored, bits), level=near)


def _jpeg2000(*, signed: bool, **options: Any) -> Callable[[np.ndarray, int], bytes]:
    """A codestream whose components are signed, as the standard requires, or bit patterns."""

    def encode(stored: np.ndarray, bits: int) -> bytes:
        values = stored.astype(np.int8 if bits <= 8 else np.int16) if signed else None
        values = _pattern(stored, bits) if values is None else values
        return imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(values), codecformat="J2K", bitspersample=bits, **options
        )

    return encode


CODECS: dict[str, tuple[str, Callable[[np.ndarray, int], bytes]]] = {
    "rle": (RLELossless, _rle),
    "jpeg-baseline": (JPEGBaseline8Bit, _jpeg(level=95)),
    "jpeg-extended": (JPEGExtended12Bit, _jpeg(level=95, bitspersample=12)),
    "jpeg-extended-8": (JPEGExtended12Bit, _jpeg(level=95)),
    "jpeg-lossless-sv1": (JPEGLosslessSV1, _jpeg_lossless(1)),
    "jpeg-lossless-p14-4": (JPEGLossless, _jpeg_lossless(4)),
    "jpeg-lossless-p14-7": (JPEGLossless, _jpeg_lossless(7)),
    "jpegls": (JPEGLSLossless, _jpegls(0)),
    "jpegls-near": (JPEGLSNearLossless, _jpegls(3)),
    "jpeg2000": (JPEG2000Lossless, _jpeg2000(signed=False, reversible=True)),
    "jpeg2000-signed": (JPEG2000Lossless, _jpeg2000(signed=True, reversible=True)),
    "jpeg2000-lossy": (JPEG2000, _jpeg2000(signed=False, level=60)),
    "jpeg2000-lossy-signed": (JPEG2000, _jpeg2000(signed=True, level=60)),
}


def _encode(ds: Dataset, recipe: Recipe, stored: np.ndarray) -> None:
    if recipe.codec in {"explicit", "implicit"}:
        explicit = recipe.codec == "explicit"
        syntax = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
        ds.file_meta.TransferSyntaxUID = syntax
        kind = ("i" if recipe.signed else "u") + str(ds.BitsAllocated // 8)
        data = stored.astype("<" + kind).tobytes()
        ds.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))
        return
    uid, encoder = CODECS[recipe.codec]
    ds.file_meta.TransferSyntaxUID = uid
    frame = bytes(encoder(stored, recipe.bits))
    ds.add_new(
        "PixelData",
        "OB",
        encapsulate([frame], fragments_per_frame=recipe.fragments, has_bot=recipe.offset_table),
    )
    ds["PixelData"].is_undefined_length = True


def through_file(ds: Dataset) -> Dataset:
    """Writes the dataset to memory and reads it back."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def plain(**attributes: Any) -> Dataset:
    """A small radiograph that is accepted, with attributes changed. None removes an attribute."""
    ds = write(Recipe())
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, Sequence(value) if keyword.endswith("Sequence") else value)
    return ds


def code(value: str, scheme: str, meaning: str, **more: Any) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for keyword, content in more.items():
        setattr(item, keyword, content)
    return item
