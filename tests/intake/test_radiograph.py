"""Reading radiographs: one scene, stored in many ways, gives the same display and tensor."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.pixel_data import CODECS, NATIVE, decode
from nemt_dicom.intake.radiograph import UPRIGHT, Radiograph
from nemt_dicom.model.golden import golden_radiograph
from nemt_dicom.pipeline import read_source
from tests.intake import scene
from tests.intake.reading import PREPROCESSING, check, off, read, tensor
from tests.intake.scene import GREY_LEVEL, ORIENTATIONS, Recipe, plain, turned, write

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
