"""Reading radiographs: one scene, stored in many ways, gives the same display and tensor."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Reason, Refused
from nemt_dicom.intake.display import window
from nemt_dicom.intake.pixel_data import CODECS, NATIVE, decode
from nemt_dicom.intake.radiograph import UPRIGHT, Radiograph
from nemt_dicom.model.golden import golden_radiograph
from nemt_dicom.model.preprocess import Preprocessing
from nemt_dicom.pipeline import read_source
from tests.intake import scene
from tests.intake.scene import GREY_LEVEL, ORIENTATIONS, Recipe, plain, turned, write

PREPROCESSING = Preprocessing(size=64, low_percentile=0, high_percentile=100)


def read(dataset: Dataset) -> Radiograph:
    return Radiograph.from_dataset(dataset, InputSettings())


def tensor(radiograph: Radiograph) -> np.ndarray:
    return PREPROCESSING(radiograph)[0]


def expected_tensor() -> np.ndarray:
    """The tensor of the scene itself, without the rounding of a file."""
    pixels = scene.scene().astype(np.float32)
    return tensor(Radiograph(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="dicom"))


def off(recipe: Recipe) -> float:
    """Largest difference between the tensors of the file and of the scene, in 8-bit grey levels."""
    return float(np.abs(tensor(read(write(recipe))) - expected_tensor()).max()) / GREY_LEVEL


def check(recipe: Recipe, levels: float = 1.0) -> None:
    """The tensor and every displayed pixel differ from the scene by at most `levels`."""
    radiograph = read(write(recipe))
    shown = turned(recipe.shown, recipe.orientation)
    assert radiograph.pixels.dtype == np.float32
    assert np.abs(radiograph.pixels - shown).max() <= levels * GREY_LEVEL
    assert off(recipe) <= levels


# --- golden vectors ---


@pytest.mark.parametrize("voi", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID", "lut"])
@pytest.mark.parametrize("modality", [None, "rescale", "negative", "lut"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_display_pipeline(photometric: str, modality: str | None, voi: str | None) -> None:
    check(Recipe(photometric=photometric, modality=modality, voi=voi))


@pytest.mark.parametrize("voi", ["LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize("modality", ["rescale", "negative"])
def test_narrow_window_tells_the_linear_functions_apart(modality: str, voi: str) -> None:
    check(Recipe(modality=modality, voi=voi, span=12.0))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("modality", "voi"),
    [(None, None), (None, "LINEAR"), ("negative", "LINEAR"), ("lut", "lut"), (None, "lut")],
    ids=["bare", "window", "negative-window", "luts", "voi-lut"],
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_bits_and_sign(
    bits: int, signed: bool, modality: str | None, voi: str | None, photometric: str
) -> None:
    check(Recipe(bits=bits, signed=signed, modality=modality, voi=voi, photometric=photometric))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
def test_orientation(orientation: tuple[str, str]) -> None:
    recipe = Recipe(orientation=orientation, photometric="MONOCHROME1", voi="LINEAR")
    check(recipe)
    assert read(write(recipe)).orientation == orientation


LOSSLESS = [
    "implicit",
    "explicit",
    "rle",
    "jpeg-lossless-sv1",
    "jpeg-lossless-p14-4",
    "jpeg-lossless-p14-7",
    "jpegls",
    "jpeg2000",
]


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_transfer_syntax(codec: str, bits: int, signed: bool) -> None:
    recipe = Recipe(codec=codec, bits=bits, signed=signed, voi="LINEAR")
    check(recipe)
    plain_bytes = decode(write(replace(recipe, codec="explicit")))
    assert np.array_equal(decode(write(recipe)), plain_bytes)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_jpeg2000_with_signed_components(bits: int) -> None:
    recipe = Recipe(codec="jpeg2000-signed", bits=bits, signed=True)
    check(recipe)
    assert np.array_equal(decode(write(recipe)), decode(write(replace(recipe, codec="explicit"))))


LOSSY = [
    # codec, bits, signed, bound in grey levels of 8 bit
    pytest.param("jpeg-baseline", 8, False, 2.0, id="jpeg-baseline-8"),
    pytest.param("jpeg-extended-8", 8, False, 2.0, id="jpeg-extended-8"),
    pytest.param("jpeg-extended", 10, False, 1.0, id="jpeg-extended-10"),
    pytest.param("jpeg-extended", 12, False, 1.0, id="jpeg-extended-12"),
    pytest.param("jpegls-near", 8, False, 4.0, id="jpegls-near-8"),  # 3 of 255, and rounding
    pytest.param("jpegls-near", 12, False, 1.0, id="jpegls-near-12"),
    pytest.param("jpegls-near", 16, False, 1.0, id="jpegls-near-16"),
    pytest.param("jpeg2000-lossy", 8, False, 2.0, id="jpeg2000-lossy-8"),
    pytest.param("jpeg2000-lossy", 10, False, 2.0, id="jpeg2000-lossy-10"),
    pytest.param("jpeg2000-lossy", 12, False, 2.0, id="jpeg2000-lossy-12"),
    pytest.param("jpeg2000-lossy", 16, False, 2.0, id="jpeg2000-lossy-16"),
    pytest.param("jpeg2000-lossy-signed", 12, True, 2.0, id="jpeg2000-lossy-12-signed"),
    pytest.param("jpeg2000-lossy-signed", 16, True, 2.0, id="jpeg2000-lossy-16-signed"),
]


@pytest.mark.parametrize(("codec", "bits", "signed", "levels"), LOSSY)
def test_lossy_transfer_syntax(codec: str, bits: int, signed: bool, levels: float) -> None:
    recipe = Recipe(codec=codec, bits=bits, signed=signed)
    assert off(recipe) <= levels
    assert off(replace(recipe, photometric="MONOCHROME1")) <= levels


def test_every_transfer_syntax_offered_is_tested() -> None:
    tested = {write(Recipe(codec=codec, bits=8)).file_meta.TransferSyntaxUID for codec in LOSSLESS}
    tested |= {uid for codec, (uid, _) in scene.CODECS.items() if "lossy" in codec or "8" in codec}
    tested |= {scene.CODECS[name][0] for name in ("jpeg-baseline", "jpegls-near")}
    assert tested == NATIVE | set(CODECS)


@pytest.mark.parametrize("table", [True, False], ids=["offsets", "no-offsets"])
@pytest.mark.parametrize("codec", ["jpeg2000", "jpegls", "jpeg-lossless-sv1"])
def test_frame_in_several_fragments(codec: str, table: bool) -> None:
    check(Recipe(codec=codec, fragments=3, offset_table=table))


def test_overshoot_of_a_wider_lossy_codec_does_not_wrap() -> None:
    """12-bit JPEG of 10 stored bits: values beyond 1023 are white, not black again."""
    recipe = Recipe(codec="jpeg-extended", bits=10)
    ds = write(recipe)
    frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))
    assert CODECS[ds.file_meta.TransferSyntaxUID](frame).max() > 1023, "the case does not arise"
    assert np.abs(read(ds).pixels - scene.scene()).max() < 0.05


# --- stored values ---


def bare(stored: np.ndarray, bits: int, high_bit: int, representation: int) -> Dataset:
    ds = plain(
        BitsAllocated=8 * stored.itemsize,
        BitsStored=bits,
        HighBit=high_bit,
        PixelRepresentation=representation,
    )
    ds.Rows, ds.Columns = stored.shape
    ds.PixelData = stored.tobytes()
    return ds


STORED = (np.arange(60 * 48).reshape(60, 48) - 1000).astype("<i2")  # fits 12 bits, signed
PATTERN = (STORED & 0xFFF).astype("<u2")


@pytest.mark.parametrize(
    ("written", "high_bit", "representation", "expected"),
    [
        pytest.param(PATTERN, 11, 0, PATTERN, id="unsigned"),
        pytest.param(PATTERN, 11, 1, STORED, id="signed-not-extended"),
        pytest.param(STORED, 11, 1, STORED, id="signed-extended"),
        pytest.param(PATTERN | 0xA000, 11, 0, PATTERN, id="overlay-bits-above"),
        pytest.param((PATTERN << 4) | 5, 15, 0, PATTERN, id="high-bit-15"),
        pytest.param((PATTERN << 2) | 0xC001, 13, 1, STORED, id="high-bit-13-signed"),
    ],
)
def test_bits_outside_the_stored_ones_do_not_count(
    written: np.ndarray, high_bit: int, representation: int, expected: np.ndarray
) -> None:
    ds = bare(written.astype("<u2" if written.min() >= 0 else "<i2"), 12, high_bit, representation)
    assert np.array_equal(decode(ds), expected)


@pytest.mark.parametrize(
    "codec", ["jpeg-lossless-sv1", "jpeg-lossless-p14-7", "jpegls", "jpeg2000", "jpeg2000-lossy"]
)
def test_values_in_the_highest_bits_of_a_coded_sample(codec: str) -> None:
    """HighBit 15 with 12 bits stored: an encoder keeps the bits in place, or moves them."""
    expected = decode(write(Recipe(bits=12)))
    for shift, bits in ((4, 16), (0, 12)):
        uid, encoder = scene.CODECS[codec]
        ds = compressed(Recipe(bits=12), uid, bytes(encoder(expected << shift, bits)))
        ds.HighBit = 15
        assert np.abs(decode(ds) - expected).max() <= (60 if "lossy" in codec else 0)


def compressed(recipe: Recipe, uid: str, frame: bytes) -> Dataset:
    ds = write(recipe)
    ds.file_meta.TransferSyntaxUID = uid
    del ds.PixelData
    ds.add_new("PixelData", "OB", encapsulate([frame]))
    ds["PixelData"].is_undefined_length = True
    return ds


@pytest.mark.parametrize("damage", ["cut", "zeroed"])
@pytest.mark.parametrize("codec", scene.CODECS)
def test_frame_that_ends_early_is_refused(codec: str, damage: str) -> None:
    """Decoders would fill the missing part with grey, and a mask would be drawn on it."""
    uid, encoder = scene.CODECS[codec]
    bits = 8 if "8" in codec or "baseline" in codec else 12
    frame = bytes(encoder(decode(write(Recipe(bits=bits))), bits))
    half = len(frame) // 2
    damaged = frame[:half] if damage == "cut" else frame[:half] + bytes(len(frame) - half)
    with pytest.raises(Refused) as caught:
        decode(compressed(Recipe(bits=bits), uid, damaged))
    assert caught.value.reason is Reason.DECODE_FAILED
    whole = compressed(Recipe(bits=bits), uid, frame + bytes(0 if codec == "rle" else 20))
    assert decode(whole).shape == (scene.ROWS, scene.COLUMNS)


@pytest.mark.parametrize("empty", [False, True], ids=["absent", "empty"])
@pytest.mark.parametrize("keyword", ["SamplesPerPixel", "PixelRepresentation", "HighBit"])
@pytest.mark.parametrize("codec", ["explicit", "rle", "jpegls"])
def test_attribute_with_one_possible_reading_may_be_absent(
    codec: str, keyword: str, *, empty: bool
) -> None:
    ds = write(Recipe(codec=codec))
    if empty:
        setattr(ds, keyword, None)
    else:
        delattr(ds, keyword)
    assert np.array_equal(read(ds).pixels, read(write(Recipe(codec=codec))).pixels)


def test_dataset_is_left_as_it_was() -> None:
    ds = write(Recipe(photometric="MONOCHROME1", modality="lut", voi="lut", codec="jpegls"))
    before = BytesIO(), BytesIO()
    ds.save_as(before[0], enforce_file_format=True)
    read(ds)
    ds.save_as(before[1], enforce_file_format=True)
    assert before[0].getvalue() == before[1].getvalue()


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


@pytest.mark.parametrize(
    "value", [None, "", "L", ["X", "Y"], ["L", "R"], ["L", "F", "H"], ["", ""]]
)
def test_unusable_orientation_is_upright(value: object) -> None:
    assert read(plain(PatientOrientation=value)).orientation == UPRIGHT


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, 1.0),
        ({"PixelSpacing": [0.3, 0.15]}, 2.0),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, 0.5),
        ({"NominalScannedPixelSpacing": [0.1, 0.2]}, 0.5),
        ({"PixelAspectRatio": [4, 3]}, 4 / 3),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, 1.0),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]}, 2.0),
        ({"PixelSpacing": [0.143, 0.1435]}, 1.0),
        ({"PixelSpacing": None, "PixelAspectRatio": [2, 1]}, 2.0),
    ],
)
def test_shape_of_the_pixels(attributes: dict[str, Any], expected: float) -> None:
    ds = write(Recipe())
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    assert read(ds).aspect == pytest.approx(expected, abs=1e-12)


def test_impossible_shape_of_a_pixel_is_refused() -> None:
    with pytest.raises(Refused, match="PixelSpacing") as caught:
        read(plain(PixelSpacing=[0.1, 1]))
    assert caught.value.reason is Reason.INVALID_ATTRIBUTE


def test_message_for_a_file_that_is_not_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.dcm").write_text("What the meeting decided.\n" * 20)
    with pytest.raises(Refused, match="not a DICOM file") as caught:
        read_source((tmp_path / "notes.dcm").read_bytes(), InputSettings())
    assert caught.value.reason is Reason.UNPARSABLE


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "Modality", "Rows", "WindowCenter"])
def test_an_attribute_of_an_unknown_vr_is_refused(keyword: str) -> None:
    """One damaged byte must not end `nemt-dicom explain`, nor make a dead letter."""
    data = encoded(golden_radiograph())
    tag = tag_for_keyword(keyword)
    assert tag is not None
    start = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    place = data.index(start + dictionary_VR(tag).encode(), 132) + 4
    damaged = data[:place] + b"Q?" + data[place + 2 :]
    with pytest.raises(Refused) as caught:
        read_source(damaged, InputSettings())
    assert caught.value.reason in {Reason.INVALID_ATTRIBUTE, Reason.UNPARSABLE}


def test_a_deflated_file_that_is_damaged_is_refused() -> None:
    ds = golden_radiograph()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = encoded(ds)
    with pytest.raises(Refused) as caught:
        read_source(data[:-2000] + bytes(2000), InputSettings())
    assert caught.value.reason is Reason.UNPARSABLE


def encoded(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_file_of_big_endian_without_file_meta_is_refused(tmp_path: Path) -> None:
    ds = write(Recipe())
    del ds.file_meta
    ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    path = tmp_path / "bare.dcm"
    pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False, force_encoding=True)
    with pytest.raises(Refused, match="big endian"):
        read_source(path.read_bytes(), InputSettings())


def test_orientation_with_a_second_direction() -> None:
    assert read(plain(PatientOrientation=["RF", "FL"])).orientation == ("R", "F")


# --- padding and collimation ---

PADDING = {
    "low": Recipe(margin=12, padding=(0, None)),
    "high": Recipe(margin=12, padding=(4095, None)),
    "range": Recipe(margin=12, padding=(0, 9)),
    "range-reversed": Recipe(margin=12, padding=(9, 0)),
    "high-range-inverse": Recipe(margin=12, padding=(4085, 4095), photometric="MONOCHROME1"),
    "signed": Recipe(margin=12, padding=(-2048, None), signed=True),
    "signed-range": Recipe(margin=12, padding=(-2048, -2040), signed=True),
    "negative-slope": Recipe(margin=12, padding=(4095, None), modality="negative"),
    "modality-lut": Recipe(margin=12, padding=(0, None), modality="lut"),
    "window": Recipe(margin=12, padding=(0, None), voi="LINEAR"),
    "turned": Recipe(margin=12, padding=(0, None), orientation=("F", "R")),
    "16-bit": Recipe(margin=12, padding=(65535, None), bits=16, photometric="MONOCHROME1"),
}


@pytest.mark.parametrize("recipe", PADDING.values(), ids=PADDING)
def test_padding_is_not_valid(recipe: Recipe) -> None:
    radiograph = read(write(recipe))
    inner = np.zeros((scene.ROWS + 24, scene.COLUMNS + 24), bool)
    inner[12:-12, 12:-12] = True
    inner = turned(inner, recipe.orientation)
    assert radiograph.valid is not None
    assert np.array_equal(radiograph.valid, inner)
    assert (radiograph.pixels[~inner] == 0).all()
    shown = turned(np.pad(recipe.shown, 12), recipe.orientation)
    assert np.abs(radiograph.pixels - shown)[inner].max() <= GREY_LEVEL

    # The tensor equals that of the scene in a black frame that the statistics ignore.
    framed = Radiograph(
        pixels=shown.astype(np.float32),
        valid=inner,
        orientation=recipe.orientation,  # type: ignore[arg-type]
        source_kind="dicom",
    )
    assert np.abs(tensor(radiograph) - tensor(framed)).max() <= GREY_LEVEL


def test_padding_does_not_shift_the_brightness_of_the_rest() -> None:
    """The scene decides black and white of the tensor, although the padding is blacker."""
    pixels = np.pad(0.4 + 0.2 * scene.scene(), 12).astype(np.float32)
    valid = np.zeros(pixels.shape, bool)
    valid[12:-12, 12:-12] = True
    framed = Radiograph(pixels=pixels, valid=valid, orientation=UPRIGHT, source_kind="dicom")
    geometry = PREPROCESSING.geometry(framed)
    whole = geometry.to_model(valid.astype(np.float32)) > 0.999
    inner = tensor(framed)[0][whole]
    assert inner.min() == 0
    assert inner.max() == 1
    assert 0.3 < np.median(inner) < 0.7


def test_padding_value_that_no_pixel_has() -> None:
    ds = plain(PixelPaddingValue=4095)
    ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") // 2).astype("<u2").tobytes()
    assert read(ds).valid is None


def test_padding_value_read_with_the_wrong_sign() -> None:
    recipe = Recipe(margin=12, padding=(-2048, None), signed=True)
    ds = write(recipe)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2048)
    assert np.array_equal(read(ds).valid, read(write(recipe)).valid)


def collimated(kind: str = "Collimator", **edges: int) -> Dataset:
    names = {"top": "UpperHorizontal", "bottom": "LowerHorizontal"}
    names |= {"left": "LeftVertical", "right": "RightVertical"}
    attributes = {f"{kind}{names[name]}Edge": value for name, value in edges.items()}
    return plain(**{f"{kind}Shape": "RECTANGULAR"}, **attributes)


@pytest.mark.parametrize("kind", ["Collimator", "Shutter"])
def test_pixels_outside_the_collimation_are_not_valid(kind: str) -> None:
    valid = read(collimated(kind, top=10, bottom=140, left=5, right=110)).valid
    assert valid is not None
    rows, columns = np.flatnonzero(valid.any(axis=1)), np.flatnonzero(valid.any(axis=0))
    assert (rows[0] + 1, rows[-1] + 1) == (11, 139)  # 1-based, between the edges
    assert (columns[0] + 1, columns[-1] + 1) == (6, 109)
    assert valid[10:139, 5:109].all()


@pytest.mark.parametrize(
    "edges",
    [
        {"top": -184, "bottom": 184, "left": -184, "right": 184},
        {"top": 140, "bottom": 10, "left": 5, "right": 110},
        {"top": 10, "bottom": 400, "left": 5, "right": 110},
        {"top": 10, "bottom": 12, "left": 5, "right": 7},
        {"top": 10, "bottom": 140, "left": 5},
    ],
    ids=["other-coordinates", "upside-down", "beyond", "tiny", "incomplete"],
)
def test_collimation_that_makes_no_sense_is_ignored(edges: dict[str, int]) -> None:
    assert read(collimated(**edges)).valid is None


# --- refusals that need the pixels ---


def overflowing() -> Dataset:
    return plain(RescaleSlope="1e308", RescaleIntercept="1e308")


def all_one_value() -> Dataset:
    return plain(PixelData=np.full((scene.ROWS, scene.COLUMNS), 7, "<u2").tobytes())


def all_padding() -> Dataset:
    ds = all_one_value()
    ds.PixelPaddingValue = 7
    return ds


def wrong_size() -> Dataset:
    ds = write(Recipe(codec="jpegls"))
    ds.Rows, ds.Columns = ds.Columns, ds.Rows
    return ds


def garbage(codec: str) -> Dataset:
    ds = write(Recipe(codec=codec, bits=8))
    ds.PixelData = pydicom.encaps.encapsulate([b"\x00\x01garbage" * 40])
    return ds


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(overflowing, Reason.NON_FINITE, id="rescale-overflows"),
        pytest.param(all_one_value, Reason.NO_CONTRAST, id="one-value"),
        pytest.param(all_padding, Reason.NO_CONTRAST, id="all-padding"),
        pytest.param(
            lambda: plain(WindowCenter=90000, WindowWidth=100), Reason.NO_CONTRAST, id="window-away"
        ),
        pytest.param(
            lambda: plain(WindowCenter=9, WindowWidth=9, VOILUTFunction="LOG"),
            Reason.INVALID_ATTRIBUTE,
            id="unknown-voi-function",
        ),
        pytest.param(lambda: plain(RescaleSlope=0), Reason.NO_CONTRAST, id="slope-0"),
        pytest.param(wrong_size, Reason.DECODE_FAILED, id="size-in-the-codestream-differs"),
        pytest.param(lambda: plain(PixelData=b"\0" * 100), Reason.DECODE_FAILED, id="too-short"),
        *[
            pytest.param(lambda c=codec: garbage(c), Reason.DECODE_FAILED, id=f"garbage-{codec}")
            for codec in ("rle", "jpeg-baseline", "jpeg-lossless-sv1", "jpegls", "jpeg2000")
        ],
    ],
)
def test_refusal(make: Callable[[], Dataset], reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        read(make())
    assert caught.value.reason is reason


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "WindowCenter"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_number_that_is_not_finite_is_refused(keyword: str, number: str) -> None:
    ds = plain(WindowCenter=2000, WindowWidth=1000)
    ds[keyword] = pydicom.DataElement(keyword, "DS", float(number), validation_mode=0)
    with pytest.raises(Refused) as caught:
        read(ds)
    assert caught.value.reason is Reason.NON_FINITE


def test_transfer_syntax_that_is_not_offered_is_refused() -> None:
    ds = plain()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(Refused) as caught:
        read(ds)
    assert caught.value.reason is Reason.TRANSFER_SYNTAX


def test_dataset_without_file_meta_is_refused() -> None:
    ds = plain()
    del ds.file_meta
    with pytest.raises(Refused):
        read(ds)


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


# --- real radiographs ---


def real(folder: Path, name: str) -> Dataset:
    (path,) = (folder / "dicom-interop").glob(f"{name}*")
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:  # an old file without Part 10 header
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        if not ds.original_encoding[0]:
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["RG1_J2KR", "RG1_UNCR", "CR-MONO1-10", "nih_google_dx", "siim"])
def test_real_chest_is_accepted(real_data: Path, name: str) -> None:
    ds = real(real_data, name)
    radiograph = read(ds)
    assert radiograph.pixels.shape == (ds.Rows, ds.Columns)
    assert radiograph.pixels.std() > 0.1
    model, geometry = PREPROCESSING(radiograph)
    lungs = model[0, 16:40, 12:52].mean()  # the lungs are darker than shoulders and abdomen
    assert lungs < model[0, 48:, 12:52][geometry.inside()[48:, 12:52]].mean()


@pytest.mark.realdata
def test_real_leg_is_refused(real_data: Path) -> None:
    with pytest.raises(Refused) as caught:
        read(real(real_data, "RG3_J2KR"))
    assert caught.value.reason is Reason.NOT_CHEST
    assert "EXTREMITY" in str(caught.value)


@pytest.mark.realdata
def test_two_encodings_of_one_radiograph_are_bit_identical(real_data: Path) -> None:
    tensors = [tensor(read(real(real_data, name))) for name in ("RG1_J2KR", "RG1_UNCR")]
    assert np.array_equal(*tensors)
