"""Reading pictures and photographs: the scene as they show it, and what cannot be used."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemt_dicom.errors import DataError
from nemt_dicom.intake.radiograph import UPRIGHT, Radiograph
from tests.intake import scene
from tests.intake.reading import expected_tensor, tensor
from tests.intake.scene import GREY_LEVEL

# --- pictures ---


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_picture_gives_the_scene(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "scene.png"
    full = np.iinfo(dtype).max
    Image.fromarray(np.rint(scene.scene() * full).astype(dtype)).save(path)
    radiograph = Radiograph.from_picture(path)
    assert (radiograph.source_kind, radiograph.orientation) == ("picture", UPRIGHT)
    assert np.abs(radiograph.pixels - scene.scene()).max() <= GREY_LEVEL
    assert np.abs(tensor(radiograph) - expected_tensor()).max() <= GREY_LEVEL


def test_picture_is_turned_as_exif_says(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    grey = np.rint(scene.scene() * 65535).astype(np.uint16)
    Image.fromarray(np.ascontiguousarray(np.rot90(grey))).save(path, exif=exif)
    assert np.abs(Radiograph.from_picture(path).pixels - scene.scene()).max() <= GREY_LEVEL


def test_picture_in_either_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "scene.tiff"
    grey = np.rint(scene.scene() * 65535).astype(">u2")
    Image.frombytes("I;16B", grey.shape[::-1], grey.tobytes()).save(path)
    assert np.abs(Radiograph.from_picture(path).pixels - scene.scene()).max() <= GREY_LEVEL


def test_coloured_picture_is_read_as_grey(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    grey = np.rint(scene.scene() * 255).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(path)
    assert np.abs(Radiograph.from_picture(path).pixels - scene.scene()).max() <= GREY_LEVEL


def spoilt_picture(path: Path) -> None:
    Image.fromarray(np.rint(scene.scene() * 255).astype(np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: path.write_bytes(b"no picture"), id="no-picture"),
        pytest.param(lambda path: Image.new("L", (40, 40), 9).save(path), id="one-value"),
        pytest.param(spoilt_picture, id="spoilt"),
        pytest.param(
            lambda path: Image.fromarray(scene.scene().astype(np.float32)).save(path, "TIFF"),
            id="floating-point",
        ),
    ],
)
def test_picture_that_cannot_be_used(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    path = tmp_path / "picture.png"
    prepare(path)
    with pytest.raises(DataError, match=r"picture\.png"):
        Radiograph.from_picture(path)


# --- photographs ---


def photograph() -> np.ndarray:
    """(40, 60, 3) uint8 whose rows, columns and channels all differ."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([40 + 3 * y, 3 * x, np.full((40, 60), 90)], axis=-1).astype(np.uint8)


def test_photograph_is_shown_as_it_is(tmp_path: Path) -> None:
    """Colours are not changed."""
    path = tmp_path / "skin.png"
    Image.fromarray(photograph()).save(path)
    radiograph = Radiograph.from_photograph(path)
    assert (radiograph.source_kind, radiograph.orientation) == ("photograph", UPRIGHT)
    assert radiograph.valid is None
    assert radiograph.pixels.dtype == np.float32
    assert np.array_equal(radiograph.pixels, photograph().astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_photograph_of_another_mode_is_read_in_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "skin.tiff"
    Image.fromarray(photograph()).convert(mode).save(path)
    assert Radiograph.from_photograph(path).pixels.shape == (40, 60, 3)


def test_photograph_of_a_camera_held_sideways(tmp_path: Path) -> None:
    path = tmp_path / "skin.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by 90 degrees clockwise to show
    Image.fromarray(photograph()).save(path, exif=exif)
    shown = np.rot90(photograph(), -1)
    assert np.array_equal(np.rint(Radiograph.from_photograph(path).pixels * 255), shown)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: path.write_bytes(b"no picture"), id="no-picture"),
        pytest.param(lambda path: Image.new("RGB", (40, 40), (9, 9, 9)).save(path), id="one-value"),
        pytest.param(lambda path: Image.new("I;16", (40, 40), 9).save(path), id="16-bit"),
        pytest.param(spoilt_picture, id="spoilt"),
    ],
)
def test_photograph_that_cannot_be_used(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    path = tmp_path / "picture.png"
    prepare(path)
    with pytest.raises(DataError, match=r"picture\.png"):
        Radiograph.from_photograph(path)


def test_picture_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(photograph()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read_file in (Radiograph.from_photograph, Radiograph.from_picture):
        with pytest.raises(DataError, match=r"picture\.png: cannot be read"):
            read_file(path)
