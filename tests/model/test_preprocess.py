"""Geometry: what is drawn in the model's frame lands where it belongs in the source, and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemt_dicom.intake.radiograph import UPRIGHT, Radiograph
from nemt_dicom.model.preprocess import Geometry, Preprocessing, turn_back, turn_upright
from tests.intake import scene
from tests.intake.scene import ORIENTATIONS, turned

orientations = st.sampled_from(ORIENTATIONS)
model_sizes = st.sampled_from([32, 45, 64, 96])


@st.composite
def geometries(draw: st.DrawFn, longest: int = 3000) -> Geometry:
    """Shapes that admission lets through: one side at most ten times the other."""
    long = draw(st.integers(32, longest))
    short = draw(st.integers(max(32, -(-long // 10)), max(32, long)))
    rows, columns = draw(st.permutations([long, short]))
    return Geometry(
        rows=rows,
        columns=columns,
        orientation=draw(orientations),
        size=draw(model_sizes),
        aspect=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3, 2.0])),
    )


def upright(geometry: Geometry) -> tuple[int, int, float, float]:
    """Rows, columns, and height and width of a pixel, upright."""
    if geometry.orientation[0] in "FH":
        return geometry.columns, geometry.rows, 1.0, geometry.aspect
    return geometry.rows, geometry.columns, geometry.aspect, 1.0


def linear(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Linear interpolation at fractional indices, repeating the border: a plain reference."""
    y = np.clip(y, 0, image.shape[0] - 1)[:, None]
    x = np.clip(x, 0, image.shape[1] - 1)[None, :]
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, image.shape[0] - 1), np.minimum(x0 + 1, image.shape[1] - 1)
    top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
    bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def expected_in_source(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Where each source pixel's centre lies in the letterbox, by the definition of the frames."""
    rows, columns, height, width = upright(geometry)
    scale = max(rows * height, columns * width) / mask.shape[0]
    top = (mask.shape[0] - rows * height / scale) / 2  # model pixels above the image
    left = (mask.shape[0] - columns * width / scale) / 2
    y = top + (np.arange(rows) + 0.5) * height / scale - 0.5
    x = left + (np.arange(columns) + 0.5) * width / scale - 0.5
    return turned(linear(mask, y, x), geometry.orientation)


# --- turning ---


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
def test_turn_upright_undoes_how_the_detector_stood(orientation: Any) -> None:
    upright = scene.scene()
    assert np.array_equal(turn_upright(turned(upright, orientation), orientation), upright)


@given(orientations, st.integers(1, 9), st.integers(1, 9))
def test_turns_are_inverse(orientation: Any, rows: int, columns: int) -> None:
    pixels = np.arange(rows * columns).reshape(rows, columns)
    assert np.array_equal(turn_back(turn_upright(pixels, orientation), orientation), pixels)
    assert np.array_equal(turn_upright(turn_back(pixels, orientation), orientation), pixels)


def test_orientations_are_all_different() -> None:
    pixels = np.arange(6).reshape(2, 3)
    assert (
        len({turn_upright(pixels, o).tobytes() + bytes(o[0], "ascii") for o in ORIENTATIONS}) == 8
    )


# --- model frame to source ---


@given(geometries(longest=700), st.integers(0, 2**32 - 1))
def test_to_source_is_linear_interpolation_at_pixel_centres(geometry: Geometry, seed: int) -> None:
    mask = np.random.default_rng(seed).random((geometry.size, geometry.size), np.float32)
    found = geometry.to_source(mask)
    assert found.shape == (geometry.rows, geometry.columns)
    assert found.dtype == np.float32
    assert np.abs(found - expected_in_source(mask, geometry)).max() < 2e-4


SHAPES = [(224, 224), (448, 448), (300, 200), (200, 300), (1955, 1841), (3000, 2500), (60, 47)]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_segment_lands_pixel_exactly(shape: tuple[int, int], orientation: Any) -> None:
    """A rectangle drawn in the model's frame covers exactly the pixels it should."""
    geometry = Geometry(rows=shape[0], columns=shape[1], orientation=orientation, size=224)
    mask = np.zeros((224, 224), np.float32)
    mask[80:120, 60:75] = 1.0
    expected = expected_in_source(mask, geometry)
    found = geometry.to_source(mask)
    clear = np.abs(expected - 0.5) > 1e-3  # a tie of rounding is not a place
    assert clear.mean() > 0.98
    assert np.array_equal((found >= 0.5)[clear], (expected >= 0.5)[clear])
    assert (found >= 0.5).any()


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
def test_whole_multiple_of_the_model_frame_needs_no_tolerance(orientation: Any) -> None:
    geometry = Geometry(rows=448, columns=448, orientation=orientation, size=224)
    mask = np.zeros((224, 224), np.float32)
    mask[10:30, 50:90] = 1.0
    expected = np.zeros((448, 448), bool)
    expected[20:60, 100:180] = True
    assert np.array_equal(geometry.to_source(mask) >= 0.5, turned(expected, orientation))


@given(geometries(), st.floats(0, 1, width=32))
def test_constant_mask_stays_constant(geometry: Geometry, value: float) -> None:
    mask = np.full((geometry.size, geometry.size), value, np.float32)
    assert np.abs(geometry.to_source(mask) - value).max() <= 1e-6


@given(geometries(longest=600), st.integers(0, 2**32 - 1))
def test_more_mask_is_nowhere_less(geometry: Geometry, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((geometry.size, geometry.size), np.float32)
    more = np.minimum(mask + rng.random(mask.shape, np.float32) ** 8, 1)
    less, greater = geometry.to_source(mask), geometry.to_source(more)
    assert (greater - less).min() >= -1e-6
    assert less.min() >= mask.min() - 1e-6
    assert greater.max() <= more.max() + 1e-6


def test_nan_in_the_mask_is_not_hidden() -> None:
    mask = np.zeros((64, 64), np.float32)
    mask[30:34, 30:34] = np.nan
    geometry = Geometry(rows=150, columns=120, orientation=UPRIGHT, size=64)
    assert np.isnan(geometry.to_source(mask)).any()


# --- source to model frame ---


@given(geometries())
def test_inside_is_the_letterbox(geometry: Geometry) -> None:
    rows, columns, height, width = upright(geometry)
    size, longest = geometry.size, max(rows * height, columns * width)
    centres = (np.arange(size) + 0.5) * longest / size - longest / 2  # from the image's centre

    def along(extent: float) -> np.ndarray:
        return np.abs(centres) - extent / 2

    distance = np.maximum(along(rows * height)[:, None], along(columns * width)[None, :])
    clear = np.abs(distance) > 1e-6
    assert np.array_equal(geometry.inside()[clear], (distance < 0)[clear])
    assert geometry.inside().any(axis=0).all() or geometry.inside().any(axis=1).all()


@given(geometries(longest=700), st.integers(0, 2**32 - 1))
def test_to_model_is_an_average_then_linear_interpolation(geometry: Geometry, seed: int) -> None:
    rows, columns, height, width = upright(geometry)
    image = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    down, across = (max(1, round(geometry.scale / length)) for length in (height, width))
    extents = rows * height, columns * width
    rows, columns = rows // down, columns // across
    blocks = image[: rows * down, : columns * across].reshape(rows, down, columns, across)
    means = blocks.mean(axis=(1, 3))
    centres = (np.arange(geometry.size) + 0.5) * geometry.scale - max(extents) / 2
    y = (centres + extents[0] / 2) / (down * height) - 0.5
    x = (centres + extents[1] / 2) / (across * width) - 0.5
    found = geometry.to_model(turned(image, geometry.orientation))
    # at the right and lower edge a remainder of less than `shrink` pixels is left out
    in_blocks = ((y <= rows - 0.5)[:, None] & (x <= columns - 0.5)[None, :]) & geometry.inside()
    assert np.abs(found - linear(means, y, x))[in_blocks].max() < 5e-4


@given(geometries(longest=900))
def test_point_comes_back_to_where_it_was(geometry: Geometry) -> None:
    """A smooth blob in the source, taken to the model's frame and back, has the same centre."""
    y, x = np.mgrid[0 : geometry.rows, 0 : geometry.columns].astype(np.float64)
    y *= geometry.aspect
    at = geometry.rows * geometry.aspect * 0.4, geometry.columns * 0.55
    width = max(geometry.rows * geometry.aspect, geometry.columns) / 12
    blob = np.exp(-(((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * width**2))).astype(np.float32)
    back = geometry.to_source(geometry.to_model(blob)).astype(np.float64)
    weight = np.where(blob > 0.2, back, 0)
    before = np.where(blob > 0.2, blob, 0).astype(np.float64)
    pixel = max(geometry.scale, geometry.aspect, 1.0)
    for axis in (y, x):
        shift = (weight * axis).sum() / weight.sum() - (before * axis).sum() / before.sum()
        assert abs(shift) < 0.12 * pixel


# --- the tensor ---


def radiograph(pixels: np.ndarray, orientation: Any = UPRIGHT, aspect: float = 1.0) -> Radiograph:
    return Radiograph(
        pixels=pixels.astype(np.float32),
        valid=None,
        orientation=orientation,
        source_kind="dicom",
        aspect=aspect,
    )


@given(geometries(longest=500), st.integers(0, 2**32 - 1))
def test_tensor_is_bounded_and_black_beside_the_image(geometry: Geometry, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((geometry.rows, geometry.columns))
    preprocessing = Preprocessing(size=geometry.size, low_percentile=1, high_percentile=99)
    tensor, found = preprocessing(radiograph(pixels, geometry.orientation, geometry.aspect))
    assert found == geometry
    assert tensor.shape == (1, geometry.size, geometry.size)
    assert tensor.dtype == np.float32
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    assert (tensor[0][~geometry.inside()] == 0).all()


def test_percentiles_are_black_and_white() -> None:
    ramp = np.tile(np.linspace(0.2, 0.8, 128), (128, 1))
    tensor, _ = Preprocessing(size=128, low_percentile=10, high_percentile=90)(radiograph(ramp))
    expected = np.clip((np.linspace(0, 1, 128) - 0.1) / 0.8, 0, 1)
    assert np.abs(tensor[0] - expected).max() < 0.01


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
def test_tensor_does_not_depend_on_how_the_detector_stood(orientation: Any) -> None:
    preprocessing = Preprocessing(size=64, low_percentile=0, high_percentile=100)
    expected, _ = preprocessing(radiograph(scene.scene()))
    found, _ = preprocessing(radiograph(turned(scene.scene(), orientation), orientation))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
def test_tensor_does_not_depend_on_the_shape_of_the_pixels(orientation: Any) -> None:
    """Two rows, or two columns, read out as one: the chest is as high as before."""
    preprocessing = Preprocessing(size=60, low_percentile=0, high_percentile=100)
    square = turned(scene.scene(), orientation)
    expected, _ = preprocessing(radiograph(square, orientation))
    by_rows = square.reshape(square.shape[0] // 2, 2, -1).mean(axis=1)
    by_columns = square.reshape(square.shape[0], -1, 2).mean(axis=2)
    for binned, aspect in ((by_rows, 2.0), (by_columns, 0.5)):
        found, _ = preprocessing(radiograph(binned, orientation, aspect))
        assert np.abs(found - expected).mean() < 0.01


def test_all_valid_equals_no_mask() -> None:
    preprocessing = Preprocessing(size=64, low_percentile=2, high_percentile=98)
    without = radiograph(scene.scene())
    masked = Radiograph(
        pixels=without.pixels,
        valid=np.ones(without.pixels.shape, bool),
        orientation=UPRIGHT,
        source_kind="dicom",
    )
    assert np.array_equal(preprocessing(without)[0], preprocessing(masked)[0])


def coloured(shape: tuple[int, int]) -> Radiograph:
    """A photograph whose channels are three scenes of different brightness."""
    random = np.random.default_rng(3)
    pixels = random.random((*shape, 3), np.float32) * np.float32([0.4, 0.7, 0.9])
    return Radiograph(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="photograph")


@pytest.mark.parametrize("shape", [(60, 80), (200, 150), (64, 64)])
def test_each_channel_of_a_photograph_lies_where_a_grey_image_would(shape) -> None:
    photograph = coloured(shape)
    plain = Preprocessing(size=64, low_percentile=0, high_percentile=100)
    tensor, geometry = plain(photograph)
    assert (geometry.rows, geometry.columns) == shape
    assert (tensor.shape, tensor.dtype) == ((3, 64, 64), np.float32)
    inside = geometry.inside()
    moved = [geometry.to_model(photograph.pixels[..., channel]) for channel in range(3)]
    low = min(channel[inside].min() for channel in moved)
    high = max(channel[inside].max() for channel in moved)
    for channel, expected in zip(tensor, moved, strict=True):
        stretched = (expected - low) / (high - low)
        assert np.abs(channel - stretched)[inside].max(initial=0) < 1e-6
        assert not channel[~inside].any()


def test_percentiles_of_a_photograph_keep_its_colours() -> None:
    """All channels are stretched alike: a red image stays red."""
    pixels = np.zeros((64, 64, 3), np.float32) + np.float32([0.8, 0.4, 0.2])
    pixels[0, 0], pixels[0, 1] = 0.0, 1.0
    red = Radiograph(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="photograph")
    tensor, _ = Preprocessing(size=64, low_percentile=0, high_percentile=100)(red)
    assert tensor[:, 32, 32] == pytest.approx([0.8, 0.4, 0.2], abs=1e-6)


def test_a_grey_photograph_equals_the_radiograph() -> None:
    grey = scene.scene().astype(np.float32)
    radiograph = Radiograph(pixels=grey, valid=None, orientation=UPRIGHT, source_kind="picture")
    three = Radiograph(
        pixels=np.stack([grey] * 3, axis=-1),
        valid=None,
        orientation=UPRIGHT,
        source_kind="photograph",
    )
    preprocessing = Preprocessing(size=64, low_percentile=0, high_percentile=100)
    tensor = preprocessing(radiograph)[0]
    assert tensor.shape == (1, 64, 64)
    assert np.array_equal(preprocessing(three)[0], np.repeat(tensor, 3, axis=0))


def test_manifest_round_trip() -> None:
    preprocessing = Preprocessing(size=224, low_percentile=0.5, high_percentile=99.5)
    assert Preprocessing.from_manifest(preprocessing.to_manifest()) == preprocessing


GOOD = {"size": 224, "low_percentile": 0.0, "high_percentile": 100.0}


@pytest.mark.parametrize(
    "change",
    [
        {"size": None},
        {"low_percentile": None},
        {"sharpen": 1},
        {"size": 8},
        {"size": 4096},
        {"size": 224.5},
        {"low_percentile": -1},
        {"low_percentile": 60, "high_percentile": 40},
        {"high_percentile": 101},
    ],
    ids=str,
)
def test_manifest_that_is_refused(change: dict[str, Any]) -> None:
    value = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing.from_manifest(value)
