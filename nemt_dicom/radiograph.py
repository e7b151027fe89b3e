"""From a DICOM dataset (or a picture file) to a `Radiograph`, or a typed refusal.

The order of a DICOM display pipeline, PS3.4 Annex N: stored values -> modality LUT (PS3.3 C.11.1)
-> VOI LUT (PS3.3 C.11.2) -> polarity (PS3.3 C.7.6.3.1.2, C.11.6). All of it acts on single stored
values, so it is computed once for every value that occurs between the smallest and the largest
stored value (at most 65536) and then looked up for the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import pixel_array as pydicom_pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
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

from nemt_dicom.admission import admit
from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Reason, Refused

Orientation = tuple[Literal["L", "R", "H", "F"], Literal["L", "R", "H", "F"]]
"""Where rows and columns run to: PatientOrientation (PS3.3 C.7.6.1.1.1)."""

UPRIGHT: Orientation = ("L", "F")
"""A frontal chest as it is hung: the patient's left at the right, feet down."""

NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless})
CODECS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    JPEGLossless: imagecodecs.jpegsof3_decode,
    JPEGLosslessSV1: imagecodecs.jpegsof3_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
}
"""imagecodecs decodes 2 to 4 times faster than pydicom's default plugins, 12-bit JPEG included."""


LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000})

_UNUSABLE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What a value of the wrong kind or number raises, in pydicom or here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """One frontal radiograph, ready for preprocessing and for display, in the source's frame.

    pixels: (rows, columns) float32 in [0, 1], 0 shown black and 1 white (MONOCHROME2 polarity).
    valid: (rows, columns) bool, False for pixel padding and outside the collimation; None where
        every pixel counts.
    orientation: where the rows and columns run to; the pixels themselves are never turned.
    source_kind: "dicom" or "picture"; a bundle records which kind it was trained on.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_] | None
    orientation: Orientation
    source_kind: Literal["dicom", "picture"]

    @classmethod
    def from_dataset(cls, dataset: Dataset, settings: InputSettings) -> "Radiograph":
        """Reads a dataset with its pixel data.

        Raises `Refused` with the reason where this is not a frontal chest radiograph that can be
        explained. The dataset is not changed.
        """
        try:
            admit(dataset, settings)
            return cls._from_admitted(dataset)
        except _UNUSABLE as error:
            # pydicom converts an attribute's value when it is first looked at
            raise Refused(
                Reason.INVALID_ATTRIBUTE,
                f"an attribute has no usable value ({type(error).__name__})",
            ) from error

    @classmethod
    def _from_admitted(cls, dataset: Dataset) -> "Radiograph":
        stored = decode(dataset)
        padding = _padding(dataset)
        low, high = int(stored.min()), int(stored.max())
        values = np.arange(low, high + 1)
        padded_values = np.zeros(values.shape, np.bool_)
        if padding is not None:
            padded_values = (values >= padding[0]) & (values <= padding[1])
        used = _used_values(stored, values, padded_values)
        curve = np.where(padded_values, 0.0, _display_curve(dataset, values, used))
        if not np.isfinite(curve).all():
            raise Refused(Reason.NON_FINITE, "rescale or window gives values that are not finite")
        offset = stored - low if low else stored
        pixels = np.take(curve.astype(np.float32), offset)
        valid = None
        if padding is not None and bool(padded_values.any()):
            valid = ~np.take(padded_values, offset)
        collimated = _collimation(dataset, pixels.shape)
        if collimated is not None:
            valid = collimated if valid is None else valid & collimated
        _require_contrast(pixels, valid)
        return cls(
            pixels=pixels, valid=valid, orientation=_orientation(dataset), source_kind="dicom"
        )

    @classmethod
    def from_picture(cls, path: Path) -> "Radiograph":
        """Reads a greyscale picture (PNG or JPEG, 8 or 16 bit) of an upright frontal radiograph.

        For training data that were published as pictures. Raises `DataError`.
        """
        try:
            with Image.open(path) as image:
                grey = image if image.mode in {"L", "I;16", "I"} else image.convert("L")
                stored = np.asarray(grey).astype(np.float32)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a picture: {error}") from error
        low, high = float(stored.min()), float(stored.max())
        if high <= low:
            raise DataError(f"{path}: all pixels have the same value")
        pixels = (stored - np.float32(low)) / np.float32(high - low)
        return cls(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="picture")


def decode(dataset: Dataset) -> NDArray[np.int32]:
    """The stored values of a single-frame greyscale image: (rows, columns) int32, sign applied.

    Bits outside BitsStored are cleared (PS3.5 8.1.1). A lossy codec of more bits than are stored
    may overshoot their range; such values are clipped, for clearing bits would turn white to black.
    Raises `Refused`.
    """
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if syntax not in NATIVE and syntax not in CODECS:
        raise Refused(Reason.TRANSFER_SYNTAX, f"{syntax.name} is not supported")
    try:
        if syntax in NATIVE:
            # pydicom insists on these two, though without them there is but one reading
            raw = pydicom_pixel_array(
                dataset,
                raw=True,
                correct_unused_bits=False,
                samples_per_pixel=1,
                pixel_representation=0,
            )
        else:
            frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
            raw = CODECS[syntax](frame)
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(Reason.DECODE_FAILED, f"{syntax.name}: {type(error).__name__}") from error
    shape = (int(dataset.Rows), int(dataset.Columns))
    if raw.shape != shape:
        raise Refused(Reason.DECODE_FAILED, f"pixel data are {raw.shape}, the header says {shape}")
    bits = int(dataset.BitsStored)
    shift = int(dataset.get("HighBit", bits - 1)) + 1 - bits if syntax in NATIVE else 0
    stored: NDArray[np.int32] = raw.astype(np.int32)
    if shift:
        stored >>= shift
    if syntax in LOSSY:
        half = 1 << (bits - 1)
        negative = np.issubdtype(raw.dtype, np.signedinteger)
        np.clip(stored, *((-half, half - 1) if negative else (0, 2 * half - 1)), out=stored)
    stored &= (1 << bits) - 1
    if int(dataset.get("PixelRepresentation", 0)) == 1:
        sign = 1 << (bits - 1)
        stored ^= sign
        stored -= sign
    return stored


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Smallest and largest padding value, as stored (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit", value)
    bits = int(dataset.BitsAllocated)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1

    def as_stored(number: Any) -> int:
        # An ambiguous VR (US or SS) may have been read with the other sign.
        low = -(1 << (bits - 1)) if signed else 0
        return (int(number) - low) % (1 << bits) + low

    first, second = as_stored(value), as_stored(limit)
    return min(first, second), max(first, second)


def _used_values(
    stored: NDArray[np.int32], values: NDArray[np.int64], padded: NDArray[np.bool_]
) -> tuple[int, int]:
    """Smallest and largest stored value that is not padding."""
    low, high = int(values[0]), int(values[-1])
    if not padded.any():
        return low, high
    kept = stored[~np.take(padded, stored - low)]
    if kept.size == 0:
        raise Refused(Reason.NO_CONTRAST, "every pixel is padding")
    return int(kept.min()), int(kept.max())


def _display_curve(
    dataset: Dataset, values: NDArray[np.int64], used: tuple[int, int]
) -> NDArray[np.float64]:
    """What a display shows for each stored value, 0 black to 1 white."""
    with np.errstate(all="ignore"):
        rescaled = _modality(dataset, values)
        shown = _voi(dataset, rescaled)
        if shown is None:
            ends = rescaled[np.asarray(used) - values[0]]
            low, high = float(ends.min()), float(ends.max())
            if dataset.get("ModalityLUTSequence"):  # a table need not be monotonic
                inner = rescaled[used[0] - values[0] : used[1] - values[0] + 1]
                low, high = float(inner.min()), float(inner.max())
            if not high > low and np.isfinite([low, high]).all():
                raise Refused(Reason.NO_CONTRAST, "all pixels have the same value")
            shown = np.clip((rescaled - low) / (high - low), 0.0, 1.0)
    inverse = (
        dataset.PhotometricInterpretation == "MONOCHROME1"
        or dataset.get("PresentationLUTShape") == "INVERSE"
    )  # DX says both for one inversion (PS3.3 C.8.11.3.1.2), so they do not cancel out
    return np.asarray(1.0 - shown if inverse else shown, np.float64)


def _modality(dataset: Dataset, values: NDArray[np.int64]) -> NDArray[np.float64]:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset.ModalityLUTSequence[0], values)[0]
    slope = _number(dataset, "RescaleSlope", 1.0)
    return np.asarray(values * slope + _number(dataset, "RescaleIntercept", 0.0), np.float64)


def _voi(dataset: Dataset, rescaled: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The first VOI transformation, 0 to 1; None where there is none that can be used."""
    if dataset.get("VOILUTSequence"):
        if not np.isfinite(rescaled).all():
            return rescaled
        entries, full = _look_up(dataset.VOILUTSequence[0], np.rint(rescaled))
        return entries / full
    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return None
    center, width = _number(dataset, "WindowCenter", 0.0), _number(dataset, "WindowWidth", 0.0)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None  # PS3.3 C.11.2.1.2 forbids it; scanners write 0 for "none"
    return window(rescaled, center, width, function)


def _look_up(item: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """The table's entries for whole-numbered `values`, and what its largest entry can be.

    Number of entries, first value mapped, bits an entry: PS3.3 C.11.1.1 and C.11.2.1.1. Values
    beside the table get its first or its last entry.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count % 65536 or 65536
    # US or SS: a table that no value reaches was read with the wrong sign.
    for start in (first, first - 65536, first + 65536):
        if start <= values.max() and start + count > values.min():
            first = start
            break
    data = item.LUTData
    words = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(data)
    words = words.astype(np.int64) & 0xFFFF
    if bits <= 8 and words.size < count:  # two entries a word
        words = words.astype("<u2").view(np.uint8).astype(np.int64)
    entries = words[:count].astype(np.float64)
    index = np.clip(values - first, 0, entries.size - 1).astype(np.int64)
    return entries[index], max(float((1 << bits) - 1), float(entries.max()))


def window(
    values: NDArray[np.float64], center: float, width: float, function: str
) -> NDArray[np.float64]:
    """A VOI window with an output range of 0 to 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    function: LINEAR, LINEAR_EXACT or SIGMOID. Raises `Refused` for another.
    """
    if function == "LINEAR":
        if width == 1:
            return np.where(values <= center - 0.5, 0.0, 1.0)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(-4.0 * (values - center) / width))
    raise Refused(Reason.INVALID_ATTRIBUTE, "VOILUTFunction is not LINEAR, LINEAR_EXACT or SIGMOID")


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    """The first value of a numeric attribute; raises `Refused` where it is not finite."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    try:
        number = float(value[0] if isinstance(value, list | tuple) or _is_multi(value) else value)
    except (TypeError, ValueError, IndexError) as error:
        raise Refused(Reason.INVALID_ATTRIBUTE, f"{keyword} is not a number") from error
    if not np.isfinite(number):
        raise Refused(Reason.NON_FINITE, f"{keyword} is not finite")
    return number


def _is_multi(value: Any) -> bool:
    return hasattr(value, "__getitem__") and not isinstance(value, str)


def _collimation(dataset: Dataset, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """True inside the rectangular collimator and shutter (PS3.3 C.8.7.3, C.7.6.11), 1-based edges.

    Real files carry edges of another coordinate system (-184, 184); what is not a rectangle
    inside the image is ignored.
    """
    rows, columns = shape
    inside: NDArray[np.bool_] | None = None
    for kind in ("Collimator", "Shutter"):
        if "RECTANGULAR" not in np.atleast_1d(dataset.get(f"{kind}Shape") or ""):
            continue
        edges = [
            dataset.get(f"{kind}{edge}Edge")
            for edge in ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        ]
        if any(edge is None or edge == "" for edge in edges):
            continue
        top, bottom, left, right = (int(edge) for edge in edges)
        if not (0 <= top < bottom <= rows + 1 and 0 <= left < right <= columns + 1):
            continue
        if (bottom - top) * (right - left) < 0.1 * rows * columns:
            continue
        if inside is None:
            inside = np.ones((rows, columns), np.bool_)
        keep = np.zeros((rows, columns), np.bool_)
        keep[max(top, 0) : bottom - 1, max(left, 0) : right - 1] = True
        inside &= keep
    return inside


def _orientation(dataset: Dataset) -> Orientation:
    """One of the eight ways a frontal view can lie; the usual one, L and F, where none is given."""
    value = dataset.get("PatientOrientation")
    if value is None or isinstance(value, str) or len(value) != 2:
        return UPRIGHT
    first, second = str(value[0])[:1], str(value[1])[:1]
    sideways, lengthways = {"L", "R"}, {"H", "F"}
    if (first in sideways and second in lengthways) or (first in lengthways and second in sideways):
        return first, second  # type: ignore[return-value]
    return UPRIGHT


def _require_contrast(pixels: NDArray[np.float32], valid: NDArray[np.bool_] | None) -> None:
    shown = pixels if valid is None else pixels[valid]
    if shown.size == 0 or not float(shown.max()) > float(shown.min()):
        raise Refused(Reason.NO_CONTRAST, "the window shows every pixel with the same brightness")
