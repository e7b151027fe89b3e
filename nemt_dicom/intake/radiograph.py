"""From a DICOM dataset (or a picture or photograph file) to a `Radiograph`, or a typed refusal.

decode -> what a display shows (display.py) -> padding and collimation -> orientation.
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
from nemt_dicom.intake.uid import value_of

Orientation = tuple[Literal["L", "R", "H", "F"], Literal["L", "R", "H", "F"]]
"""Where rows and columns run to: PatientOrientation (PS3.3 C.7.6.1.1.1)."""

UPRIGHT: Orientation = ("L", "F")
"""A frontal chest as it is hung: the patient's left at the right, feet down."""

SPACINGS = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
"""What says the shape of a pixel, vertical before horizontal; the first is what viewers go by."""
MAX_ASPECT = 5.0

_UNUSABLE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What a value of the wrong kind or number raises, in pydicom or here."""

_NO_PICTURE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that is damaged, of no known format, or far too large."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """One frontal radiograph, ready for preprocessing and for display, in the source's frame.

    The trainer also reads colour photographs into it, which the service never receives.

    pixels: (rows, columns) float32 in [0, 1], 0 shown black and 1 white (MONOCHROME2 polarity);
        of a photograph (rows, columns, 3): red, green, blue.
    valid: (rows, columns) bool, False for pixel padding and outside the collimation; None where
        every pixel counts.
    orientation: where the rows and columns run to; the pixels themselves are never turned.
    aspect: height of a pixel over its width; the pixels themselves are never resized.
    source_kind: "dicom", "picture" or "photograph"; a bundle records which it was trained on.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_] | None
    orientation: Orientation
    source_kind: Literal["dicom", "picture", "photograph"]
    aspect: float = 1.0

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
        """Reads a greyscale picture (PNG, JPEG or TIFF, 8 or 16 bit) of an upright frontal
        radiograph, turned as EXIF says.

        For training data that were published as pictures. Raises `DataError`.
        """
        try:
            with Image.open(path) as image:
                if image.mode == "F":
                    raise ValueError("its pixels are no whole numbers")
                shown = ImageOps.exif_transpose(image)
                grey = shown if shown.mode.startswith("I") else shown.convert("L")
                stored = np.asarray(grey).astype(np.float32)
        except _NO_PICTURE as error:
            raise DataError(f"{path}: cannot be read as a picture: {error}") from error
        low, high = float(stored.min()), float(stored.max())
        if high <= low:
            raise DataError(f"{path}: all pixels have the same value")
        pixels = (stored - np.float32(low)) / np.float32(high - low)
        return cls(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="picture")

    @classmethod
    def from_photograph(cls, path: Path) -> "Radiograph":
        """Reads a photograph (JPEG or PNG, 8 bits a channel) as it is shown, in colour.

        Its brightness is left as it is: how dark a lesion is tells something, unlike the exposure
        of a radiograph. Raises `DataError`.
        """
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it is grey with more than 8 bits ({image.mode})")
                # a camera that was held sideways says so in EXIF, and every viewer turns it
                shown = ImageOps.exif_transpose(image).convert("RGB")
                pixels = np.asarray(shown, np.float32) / np.float32(255)
        except _NO_PICTURE as error:
            raise DataError(f"{path}: cannot be read as a photograph: {error}") from error
        if float(pixels.max()) <= float(pixels.min()):
            raise DataError(f"{path}: all pixels have the same value")
        return cls(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="photograph")


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Smallest and largest padding value, as stored (PS3.3 C.7.5.1.1.2)."""
    value = value_of(dataset, "PixelPaddingValue", None)
    if value is None:
        return None
    limit = value_of(dataset, "PixelPaddingRangeLimit", value)
    bits = int(dataset.BitsAllocated)
    signed = int(value_of(dataset, "PixelRepresentation", 0)) == 1

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
        keep[top : bottom - 1, left : right - 1] = True
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


def _aspect(dataset: Dataset) -> float:
    """Height of a pixel over its width, exactly 1 within a hundredth (PS3.3 10.7.1.3, C.7.6.3.1.7).

    The first attribute with two positive values says it. Raises `Refused` where no image can be so.
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
    shown = pixels if valid is None else pixels[valid]
    if shown.size == 0 or not float(shown.max()) > float(shown.min()):
        raise Refused(Reason.NO_CONTRAST, "the window shows every pixel with the same brightness")
