"""Reads a DICOM dataset, a picture or a photograph into a `Radiograph`, or refuses it.

Steps: stored values (pixel_data.py), brightness on a display (display.py), padding and collimation,
orientation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom import Dataset

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Reason, Refused
from nemt_dicom.intake.admission import admit
from nemt_dicom.intake.display import display_curve
from nemt_dicom.intake.pixel_data import decode
from nemt_dicom.intake.uid import UNUSABLE, value_of

Orientation = tuple[Literal["L", "R", "H", "F"], Literal["L", "R", "H", "F"]]
"""PatientOrientation (PS3.3 C.7.6.1.1.1): the directions in which column and row numbers grow.

L: the patient's left, R: right, H: head, F: feet.
"""

UPRIGHT: Orientation = ("L", "F")
"""The usual view of a frontal chest: the patient's left is at the right, the feet are below."""

SPACINGS = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
"""Attributes with the height and the width of a pixel. The first usable one counts."""
MAX_ASPECT = 5.0
"""A pixel that is more than this times as high as wide, or as wide as high, is refused."""

_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""Errors that Pillow raises if a file is damaged, of an unknown format or far too large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """One frontal radiograph as displayed, in the frame of its source: the input of preprocessing.

    The trainer also reads colour photographs into it. The service never receives photographs.

    pixels: (rows, columns) float32 in [0, 1]. 0 is shown black, 1 white (MONOCHROME2 polarity).
        For a photograph: (rows, columns, 3), red, green, blue.
    valid: (rows, columns) bool. False for pixel padding and outside the collimation. None if every
        pixel is valid.
    orientation: the directions in which column and row numbers grow. The pixels are never turned.
    source_kind: the kind of the source. A bundle records on which kinds it was trained.
    aspect: height of a pixel divided by its width. The pixels are never resized.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_] | None
    orientation: Orientation
    source_kind: Literal["dicom", "picture", "photograph"]
    aspect: float = 1.0

    @classmethod
    def from_dataset(cls, dataset: Dataset, settings: InputSettings) -> "Radiograph":
        """Reads a dataset with its pixel data. The dataset is not changed.

        Raises `Refused` with the reason if this is not a frontal chest radiograph, or if it cannot
        be decoded or displayed.
        """
        try:
            admit(dataset, settings)
            return cls._from_admitted(dataset)
        except UNUSABLE as error:
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
        curve = np.where(padded_values, 0.0, display_curve(dataset, values, used))
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
            pixels=pixels,
            valid=valid,
            orientation=_orientation(dataset),
            source_kind="dicom",
            aspect=_aspect(dataset),
        )

    @classmethod
    def from_picture(cls, path: Path) -> "Radiograph":
        """Reads a picture of an upright frontal radiograph: training data published as pictures.

        path: PNG, JPEG or TIFF, 8 or 16 bit. Colours become grey. EXIF orientation is applied. The
            darkest pixel becomes 0, the brightest 1.

        Raises `DataError` if the file cannot be read, or if all pixels have the same value.
        """
        try:
            with Image.open(path) as image:
                if image.mode == "F":
                    raise ValueError("its pixels are not whole numbers")
                shown = ImageOps.exif_transpose(image)
                grey = shown if shown.mode.startswith("I") else shown.convert("L")
                stored = np.asarray(grey).astype(np.float32)
        except _PICTURE_ERRORS as error:
            raise DataError(f"{path}: cannot be read as a picture: {error}") from error
        low, high = float(stored.min()), float(stored.max())
        if high <= low:
            raise DataError(f"{path}: all pixels have the same value")
        pixels = (stored - np.float32(low)) / np.float32(high - low)
        return cls(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="picture")

    @classmethod
    def from_photograph(cls, path: Path) -> "Radiograph":
        """Reads a colour photograph as a viewer shows it.

        path: JPEG, PNG or TIFF with 8 bits per channel. EXIF orientation is applied. The brightness
            is not changed: the darkness of a lesion is evidence, the exposure of a radiograph is
            not.

        Raises `DataError` if the file cannot be read, or if all pixels have the same value.
        """
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it is grey with more than 8 bits ({image.mode})")
                # A camera that is held sideways writes it into EXIF. Every viewer turns the image.
                shown = ImageOps.exif_transpose(image).convert("RGB")
                pixels = np.asarray(shown, np.float32) / np.float32(255)
        except _PICTURE_ERRORS as error:
            raise DataError(f"{path}: cannot be read as a photograph: {error}") from error
        if float(pixels.max()) <= float(pixels.min()):
            raise DataError(f"{path}: all pixels have the same value")
        return cls(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="photograph")


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Smallest and largest padding value, as stored (PS3.3 C.7.5.1.1.2); None without padding."""
    value = value_of(dataset, "PixelPaddingValue", None)
    if value is None:
        return None
    limit = value_of(dataset, "PixelPaddingRangeLimit", value)
    bits = int(dataset.BitsAllocated)
    signed = int(value_of(dataset, "PixelRepresentation", 0)) == 1

    def as_stored(number: Any) -> int:
        # The VR is US or SS: the value may have been read with the wrong sign.
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


def _collimation(dataset: Dataset, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """(rows, columns) bool, True inside the rectangular collimator and shutter; None without both.

    Source: PS3.3 C.8.7.3 and C.7.6.11. Edges count from 1 and lie outside the open field. Some real
    files have edges in another coordinate system (-184, 184). A rectangle that is not inside the
    image, or smaller than a tenth of it, is ignored.
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
        rectangle = np.zeros((rows, columns), np.bool_)
        rectangle[top : bottom - 1, left : right - 1] = True
        inside &= rectangle
    return inside


def _orientation(dataset: Dataset) -> Orientation:
    """One of the eight orientations of a frontal view; `UPRIGHT` if the dataset names none."""
    value = dataset.get("PatientOrientation")
    if value is None or isinstance(value, str) or len(value) != 2:
        return UPRIGHT
    first, second = str(value[0])[:1], str(value[1])[:1]
    sideways, lengthways = {"L", "R"}, {"H", "F"}
    if (first in sideways and second in lengthways) or (first in lengthways and second in sideways):
        return first, second  # type: ignore[return-value]
    return UPRIGHT


def _aspect(dataset: Dataset) -> float:
    """Height of a pixel divided by its width (PS3.3 10.7.1.3, C.7.6.3.1.7).

    It comes from the first of `SPACINGS` with two positive values. A ratio between 0.99 and 1.01
    becomes 1. Raises `Refused` if the ratio exceeds `MAX_ASPECT`.
    """
    for keyword in SPACINGS:
        values = np.atleast_1d(dataset.get(keyword) or ()).tolist()
        if len(values) == 2 and min(float(value) for value in values) > 0:
            aspect = float(values[0]) / float(values[1])
            if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
                raise Refused(Reason.INVALID_ATTRIBUTE, f"{keyword}: pixels of {aspect:.3g} to 1")
            return 1.0 if abs(aspect - 1) < 0.01 else aspect
    return 1.0


def _require_contrast(pixels: NDArray[np.float32], valid: NDArray[np.bool_] | None) -> None:
    """Raises `Refused` if all valid pixels have the same brightness."""
    shown = pixels if valid is None else pixels[valid]
    if shown.size == 0 or not float(shown.max()) > float(shown.min()):
        raise Refused(Reason.NO_CONTRAST, "the window shows every pixel with the same brightness")
