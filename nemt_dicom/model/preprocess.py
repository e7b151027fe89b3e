"""From a `Radiograph` to the model's tensor, and back from the model's frame to the source's.

Only this file resizes or scales. Training and serving both come through `Preprocessing`, which is
one frozen value read from the bundle, so that they cannot differ.

Frames: the *source frame* is the radiograph's own rows and columns. The *upright frame* is the
source turned so that rows run to the patient's left and columns to the feet. The *model frame* is
a square of `size` square pixels that holds the upright image whole, centred, with black beside it.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nemt_dicom.intake.radiograph import Orientation, Radiograph


def turn_upright(pixels: NDArray[Any], orientation: Orientation) -> NDArray[Any]:
    """A view of `pixels` (rows, columns) whose rows run to L and whose columns run to F."""
    along_rows, along_columns = orientation
    if along_rows in {"H", "F"}:
        pixels, along_rows, along_columns = pixels.T, along_columns, along_rows
    if along_rows == "R":
        pixels = pixels[:, ::-1]
    return pixels[::-1] if along_columns == "H" else pixels


def turn_back(pixels: NDArray[Any], orientation: Orientation) -> NDArray[Any]:
    """The inverse of `turn_upright`."""
    transposed = orientation[0] in {"H", "F"}
    along_rows, along_columns = orientation[::-1] if transposed else orientation
    if along_columns == "H":
        pixels = pixels[::-1]
    if along_rows == "R":
        pixels = pixels[:, ::-1]
    return pixels.T if transposed else pixels


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the model frame lies in one source image, and the way back.

    rows: of the source.
    columns: of the source.
    size: side of the model frame in pixels.
    aspect: height of a source pixel divided by its width.

    Lengths are in widths of a source pixel.
    """

    rows: int
    columns: int
    orientation: Orientation
    size: int
    aspect: float = 1.0

    @property
    def upright_shape(self) -> tuple[int, int]:
        """(rows, columns) of the upright frame."""
        turned = self.orientation[0] in {"H", "F"}
        return (self.columns, self.rows) if turned else (self.rows, self.columns)

    @property
    def _spacing(self) -> tuple[float, float]:
        """Width and height (x, y) of an upright pixel."""
        turned = self.orientation[0] in {"H", "F"}
        return (self.aspect, 1.0) if turned else (1.0, self.aspect)

    @property
    def scale(self) -> float:
        """Length of a model pixel, the same along both axes."""
        return max(self.rows * self.aspect, self.columns) / self.size

    def _model_origin(self) -> tuple[float, float]:
        """Upright (x, y) of the centre of the model frame's first pixel."""
        rows, columns = self.upright_shape
        width, height = self._spacing
        half = self.scale * (self.size - 1) / 2
        return (columns - 1) * width / 2 - half, (rows - 1) * height / 2 - half

    def to_model(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(rows, columns) in the source frame -> (size, size), averaged and interpolated.

        Beside the image the result repeats the image's border; see `inside`.
        """
        upright = np.ascontiguousarray(turn_upright(pixels, self.orientation))
        image = sitk.GetImageFromArray(upright)
        image.SetSpacing(self._spacing)
        shrink = [max(1, round(self.scale / length)) for length in self._spacing]
        if max(shrink) > 1:  # averages, so that linear interpolation does not alias
            image = sitk.BinShrink(image, shrink)
        return _resample(
            image, (self.size, self.size), self._model_origin(), (self.scale, self.scale)
        )

    def to_source(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """(size, size) in the model frame -> (rows, columns) in the source frame, linear."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(mask, dtype=np.float32))
        image.SetOrigin(self._model_origin())
        image.SetSpacing((self.scale, self.scale))
        upright = _resample(image, self.upright_shape, (0.0, 0.0), self._spacing)
        return np.ascontiguousarray(turn_back(upright, self.orientation))

    def inside(self) -> NDArray[np.bool_]:
        """(size, size) bool: whether the centre of each model pixel lies in the image."""
        rows, columns = self.upright_shape
        x0, y0 = self._model_origin()
        width, height = self._spacing
        x = (x0 + self.scale * np.arange(self.size)) / width
        y = (y0 + self.scale * np.arange(self.size)) / height
        in_x = (x >= -0.5) & (x <= columns - 0.5)
        in_y = (y >= -0.5) & (y <= rows - 0.5)
        return in_y[:, None] & in_x[None, :]

    def inside_valid(self, valid: NDArray[np.bool_] | None, share: float) -> NDArray[np.bool_]:
        """(size, size) bool: `inside`, and at least this share of the pixel is valid.

        valid: (rows, columns) in the source frame; None if every pixel is valid.
        """
        if valid is None:
            return self.inside()
        return self.inside() & (self.to_model(valid.astype(np.float32)) >= share)


def _resample(
    image: sitk.Image,
    shape: tuple[int, int],
    origin: tuple[float, float],
    spacing: tuple[float, float],
) -> NDArray[np.float32]:
    resample = sitk.ResampleImageFilter()
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    resample.SetSize((shape[1], shape[0]))
    resample.SetOutputOrigin(origin)
    resample.SetOutputSpacing(spacing)
    resample.SetOutputPixelType(sitk.sitkFloat32)
    return np.asarray(sitk.GetArrayFromImage(resample.Execute(image)), np.float32)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a radiograph becomes a tensor: part of a bundle, without defaults.

    size: side of the tensor in pixels.
    low_percentile: percentile of the brightness that becomes 0.
    high_percentile: percentile of the brightness that becomes 1.

    Percentiles are over the valid pixels in the model frame. The paper's min-max normalisation is
    0 and 100.
    """

    size: int
    low_percentile: float
    high_percentile: float

    def __post_init__(self) -> None:
        whole = isinstance(self.size, int)
        if not (
            whole
            and 32 <= self.size <= 2048
            and 0 <= self.low_percentile < self.high_percentile <= 100
        ):
            raise ValueError(f"not a usable preprocessing: {self}")

    def geometry(self, radiograph: Radiograph) -> Geometry:
        """Where the model frame of this preprocessing lies in `radiograph`."""
        rows, columns = radiograph.pixels.shape[:2]
        return Geometry(
            rows=rows,
            columns=columns,
            orientation=radiograph.orientation,
            size=self.size,
            aspect=radiograph.aspect,
        )

    def __call__(self, radiograph: Radiograph) -> tuple[NDArray[np.float32], Geometry]:
        """The model's tensor, (C, size, size) float32 in [0, 1], and its geometry.

        C is 1, or 3 for a photograph. The percentiles are of all channels together: stretching
        each channel by itself would change the colours.
        """
        geometry = self.geometry(radiograph)
        inside = geometry.inside()
        pixels = radiograph.pixels
        channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        tensor = np.stack([geometry.to_model(channel) for channel in channels])  # (C, S, S)
        whole = geometry.inside_valid(radiograph.valid, share=0.999)
        counted = whole if whole.any() else inside
        low, high = np.percentile(tensor[:, counted], (self.low_percentile, self.high_percentile))
        spread = max(float(high - low), 1e-6)
        tensor = np.clip((tensor - np.float32(low)) / np.float32(spread), 0.0, 1.0)
        tensor[:, ~inside] = 0.0
        return tensor.astype(np.float32), geometry

    def to_manifest(self) -> dict[str, float]:
        """The JSON form kept in a bundle."""
        return asdict(self)

    @classmethod
    def from_manifest(cls, value: dict[str, Any]) -> "Preprocessing":
        """Reads the JSON form; raises `ValueError` for a missing or an unknown key."""
        names = {field.name for field in fields(cls)}
        if set(value) != names:
            raise ValueError(f"preprocessing has the keys {sorted(value)}, not {sorted(names)}")
        return cls(**value)
