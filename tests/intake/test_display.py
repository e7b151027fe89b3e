"""From stored values to grey: lookup tables and windows, and which of several is used."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from nemt_dicom.intake.display import window
from nemt_dicom.intake.pixel_data import decode
from tests.intake import scene
from tests.intake.reading import check, expected_tensor, read, tensor
from tests.intake.scene import GREY_LEVEL, Recipe, plain, write

# --- against references ---


@pytest.mark.parametrize("voi", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(voi: str) -> None:
    ds = write(Recipe(voi=voi))
    shown = apply_windowing(decode(ds), ds) / 4095
    assert np.abs(read(ds).pixels - shown).max() < 1e-5


def test_lookup_tables_agree_with_pydicom() -> None:
    ds = write(Recipe(modality="lut", voi="lut"))
    shown = apply_voi(apply_modality_lut(decode(ds), ds), ds) / 65535
    assert np.abs(read(ds).pixels - shown).max() < 1e-6


def test_window_is_the_formula_of_the_standard() -> None:
    """PS3.3 C.11.2.1.2.1 and C.11.2.1.3, value by value, with a window of 9 around 20."""
    values = np.arange(10.0, 31.0)
    linear = [
        0.0 if x <= 20 - 0.5 - 4 else 1.0 if x > 20 - 0.5 + 4 else (x - 19.5) / 8 + 0.5
        for x in values
    ]
    exact = [0.0 if x <= 20 - 4.5 else 1.0 if x > 20 + 4.5 else (x - 20) / 9 + 0.5 for x in values]
    sigmoid = [1 / (1 + np.exp(-4 * (x - 20) / 9)) for x in values]
    assert np.allclose(window(values, 20, 9, "LINEAR"), linear, atol=1e-12)
    assert np.allclose(window(values, 20, 9, "LINEAR_EXACT"), exact, atol=1e-12)
    assert np.allclose(window(values, 20, 9, "SIGMOID"), sigmoid, atol=1e-12)
    assert not np.allclose(linear, exact, atol=0.03), "the test could not tell them apart"


def test_linear_window_of_width_one_is_a_step() -> None:
    assert window(np.array([19.0, 19.5, 19.6, 20.0]), 20, 1, "LINEAR").tolist() == [0, 0, 1, 1]


@pytest.mark.servers
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("modality", [None, "rescale", "negative", "lut"])
@pytest.mark.parametrize("voi", ["LINEAR", "SIGMOID", "lut"])
def test_dcmtk_shows_the_same(
    program: Callable[[str], str], tmp_path: Path, voi: str, modality: str | None, photometric: str
) -> None:
    ds = write(Recipe(photometric=photometric, modality=modality, voi=voi))
    ds.save_as(tmp_path / "in.dcm")
    option = ["+Wl", "1"] if voi == "lut" else ["+Wi", "1"]
    call = [program("dcm2pnm"), *option, tmp_path / "in.dcm", tmp_path / "out.pgm"]
    subprocess.run(call, check=True, capture_output=True, timeout=60)
    with Image.open(tmp_path / "out.pgm") as picture:
        shown = np.asarray(picture) / 255
    assert np.abs(read(ds).pixels - shown).max() <= 1.5 * GREY_LEVEL


@pytest.mark.servers
@pytest.mark.parametrize(
    ("tool", "option", "bits", "levels", "signed"),
    [
        pytest.param("dcmcjpeg", "+e1", 12, 1.0, False, id="lossless-sv1-12"),
        pytest.param("dcmcjpeg", "+e1", 12, 1.0, True, id="lossless-sv1-12-signed"),
        pytest.param("dcmcjpeg", "+e1", 16, 1.0, False, id="lossless-sv1-16"),
        pytest.param("dcmcjpeg", "+e1", 16, 1.0, True, id="lossless-sv1-16-signed"),
        pytest.param("dcmcjpeg", "+el", 12, 1.0, False, id="lossless-p14-12"),
        pytest.param("dcmcjpeg", "+el", 12, 1.0, True, id="lossless-p14-12-signed"),
        pytest.param("dcmcjpeg", "+eb", 8, 3.0, False, id="baseline-8"),
        pytest.param("dcmcjpeg", "+eb", 8, 3.0, True, id="baseline-8-signed"),
        pytest.param("dcmcjpeg", "+ee", 12, 2.0, False, id="extended-12"),
        pytest.param("dcmcjpeg", "+ee", 12, 2.0, True, id="extended-12-signed"),
        pytest.param("dcmcjpeg", "+ee", 10, 2.0, False, id="extended-10"),
        pytest.param("dcmcjpeg", "+ee", 10, 2.0, True, id="extended-10-signed"),
        pytest.param("dcmcjpls", "+el", 12, 1.0, False, id="jpegls-12"),
        pytest.param("dcmcjpls", "+el", 12, 1.0, True, id="jpegls-12-signed"),
        pytest.param("dcmcjpls", "+el", 16, 1.0, False, id="jpegls-16"),
        pytest.param("dcmcjpls", "+el", 16, 1.0, True, id="jpegls-16-signed"),
        pytest.param("dcmcjpls", "+en", 12, 1.0, False, id="jpegls-near-12"),
        pytest.param("dcmcrle", "+e", 12, 1.0, False, id="rle-12"),
        pytest.param("dcmcrle", "+e", 12, 1.0, True, id="rle-12-signed"),
    ],
)
def test_files_that_dcmtk_compressed(
    program: Callable[[str], str],
    tmp_path: Path,
    tool: str,
    option: str,
    bits: int,
    levels: float,
    signed: bool,
) -> None:
    write(Recipe(bits=bits, signed=signed)).save_as(tmp_path / "in.dcm")
    call = [program(tool), option, tmp_path / "in.dcm", tmp_path / "out.dcm"]
    subprocess.run(call, check=True, capture_output=True, timeout=60)
    read_tensor = tensor(read(pydicom.dcmread(tmp_path / "out.dcm")))
    assert np.abs(read_tensor - expected_tensor()).max() <= levels * GREY_LEVEL


# --- lookup tables as real devices write them ---


def with_voi_lut(table: np.ndarray, first: int, bits: int, **pixels: int) -> Dataset:
    ds = plain(**pixels)
    ds.VOILUTSequence = [scene.lut_item(table, first, signed=first < 0, bits=bits)]
    return ds


RAMP = np.rint(np.linspace(0, 255, 4096)).astype(np.uint8)  # 4096 entries of 8 bits


@pytest.mark.parametrize("layout", ["packed", "one-a-word", "list"])
def test_table_of_8_bits_an_entry(layout: str) -> None:
    ds = with_voi_lut(RAMP if layout == "packed" else RAMP.astype("<u2"), 0, 8)
    if layout == "list":
        ds.VOILUTSequence[0].add_new("LUTData", "US", RAMP.astype(int).tolist())
    assert np.abs(read(ds).pixels - scene.scene()).max() <= GREY_LEVEL


def test_modality_table_of_12_bits_an_entry() -> None:
    ds = plain()
    table = np.arange(4095, -1, -1).astype("<u2")
    ds.ModalityLUTSequence = [scene.lut_item(table, 0, signed=False, bits=12)]
    assert np.abs(read(ds).pixels - (1 - scene.scene())).max() <= GREY_LEVEL


def test_table_with_more_entries_than_its_bits_say_stays_within_white() -> None:
    ds = with_voi_lut(np.arange(4096).astype("<u2"), 0, 8)
    assert np.abs(read(ds).pixels - scene.scene()).max() <= GREY_LEVEL


def test_values_beside_the_table_get_its_ends() -> None:
    ds = with_voi_lut(np.linspace(0, 65535, 1001).astype("<u2"), 1500, 16)
    stored = decode(ds)
    pixels = read(ds).pixels
    assert (pixels[stored <= 1500] == 0).all()
    assert (pixels[stored >= 2500] == 1).all()
    assert abs(pixels[stored == 2000].mean() - 0.5) < 0.001


def test_first_value_of_a_table_read_with_the_wrong_sign() -> None:
    """Unsigned pixels, modality values from -1000: read as implicit US, -1000 becomes 64536."""
    table = np.linspace(0, 65535, 4096).astype("<u2")
    ds = with_voi_lut(table, -1000, 16, RescaleIntercept=-1000, RescaleSlope=1)
    expected = read(ds).pixels
    ds.VOILUTSequence[0].add_new("LUTDescriptor", "US", [4096, 64536, 16])
    assert np.array_equal(read(ds).pixels, expected)
    assert np.abs(expected - scene.scene()).max() <= GREY_LEVEL


def test_table_of_65536_entries_says_zero() -> None:
    ds = write(Recipe(bits=16, modality="lut"))
    assert ds.ModalityLUTSequence[0].LUTDescriptor[0] == 0
    check(Recipe(bits=16, modality="lut"))


# --- the choice among transformations ---


def test_first_window_of_several_is_used() -> None:
    ds = plain(WindowCenter=[2000, 9], WindowWidth=[3000, 9])
    single = plain(WindowCenter=2000, WindowWidth=3000)
    assert np.array_equal(read(ds).pixels, read(single).pixels)


def test_voi_table_goes_before_the_window() -> None:
    ds = write(Recipe(voi="lut"))
    ds.WindowCenter, ds.WindowWidth = 5, 4
    assert np.array_equal(read(ds).pixels, read(write(Recipe(voi="lut"))).pixels)


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": -3},
        {"WindowCenter": 5, "WindowWidth": 0.5},
        {"WindowCenter": 5},
        {"WindowWidth": 5},
        {"WindowCenter": "", "WindowWidth": ""},
    ],
    ids=["width-0", "negative", "half", "no-width", "no-center", "empty"],
)
def test_unusable_window_is_ignored(attributes: dict[str, object]) -> None:
    assert np.abs(read(plain(**attributes)).pixels - scene.scene()).max() <= GREY_LEVEL


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_inverse_presentation_shape_inverts_once(photometric: str) -> None:
    check(Recipe(photometric=photometric, presentation_lut_shape="INVERSE", voi="LINEAR"))


def test_identity_presentation_shape_changes_nothing() -> None:
    check(Recipe(photometric="MONOCHROME1", presentation_lut_shape="IDENTITY"))
