"""A bundle is whole or it is refused, and the message names the file."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from nemt_dicom import cli
from nemt_dicom.config import InputSettings
from nemt_dicom.errors import BundleError, SelfTestError
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle, as_stored, save
from nemt_dicom.model.golden import golden_radiograph
from nemt_dicom.model.manifest import FILES, MANIFEST, Description, signed
from nemt_dicom.model.network import ExplainedNetwork
from tests.conftest import random_description, random_network, write_manifest


@pytest.fixture
def copy(random_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(random_bundle.folder, tmp_path / "bundle"))


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


MISSING = object()


def sign(folder: Path, **changes: Any) -> None:
    """Writes the manifest anew, with every digest right: MISSING removes a key."""
    values = {k: v for k, v in {**content(folder), **changes}.items() if v is not MISSING}
    write_manifest(folder, values)


# --- a whole bundle ---


def test_bundle_read_back_is_the_bundle_written(random_bundle: Bundle) -> None:
    again = Bundle.load(random_bundle.folder)
    assert again == random_bundle
    assert again.digest == hashlib.sha256((again.folder / MANIFEST).read_bytes()).hexdigest()
    assert {path.name for path in again.folder.iterdir()} == {MANIFEST, *FILES}
    assert set(again.manifest.sha256) == {MANIFEST, *FILES}
    assert again.provenance.model_digest == again.model_digest != again.digest
    assert again.evaluation is None
    assert again.provenance.target == "pneumonia"


def test_network_is_the_network_that_was_saved(random_bundle: Bundle) -> None:
    saved, read = random_network(), random_bundle.network("cpu")
    assert not read.training
    for name, value in read.state_dict().items():
        expected = saved.state_dict()[name]
        assert value.dtype == expected.dtype, name
        if value.is_floating_point():
            expected = as_stored(expected).float()
        assert torch.equal(value, expected), name


def test_weights_are_half_floats_on_disk(random_bundle: Bundle) -> None:
    weights = load_file(random_bundle.folder / "model.safetensors")
    for name, value in weights.items():
        if value.is_floating_point():
            small = value.numel() < 8192  # rounding these moves p most and saves nothing
            assert value.dtype == (torch.float32 if small else torch.float16), name
    assert not any("pixel_mean" in name for name in weights)


def test_there_is_no_pickle(random_bundle: Bundle) -> None:
    for path in random_bundle.folder.iterdir():
        assert path.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x04", b"PK"}, path.name


def test_self_test_passes(random_bundle: Bundle) -> None:
    random_bundle.self_test(random_bundle.network("cpu"))


def test_two_saves_are_the_same_bytes(random_bundle: Bundle, tmp_path: Path) -> None:
    again = save(tmp_path, random_network(), random_description(), "# Random weights\n")
    assert again.digest == random_bundle.digest


def test_golden_image_passes_through_every_step(random_bundle: Bundle) -> None:
    ds = pydicom.dcmread(random_bundle.folder / "golden.dcm")
    assert ds.PhotometricInterpretation == "MONOCHROME1"
    assert list(ds.PatientOrientation) == ["R", "F"]
    assert float(ds.RescaleSlope) != 1
    radiograph = Radiograph.from_dataset(ds, InputSettings())
    assert radiograph.pixels.std() > 0.1
    assert golden_radiograph().PixelData == ds.PixelData


# --- damage ---


@pytest.mark.parametrize("where", [0.0, 0.3, 0.7, 1.0], ids=["first", "early", "late", "last"])
@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_one_byte_changed(copy: Path, name: str, where: float) -> None:
    damaged = bytearray((copy / name).read_bytes())
    damaged[round(where * (len(damaged) - 1))] ^= 1
    (copy / name).write_bytes(damaged)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.load(copy)


def test_every_digit_of_the_manifest_is_protected(copy: Path) -> None:
    raw = (copy / MANIFEST).read_bytes()
    digits = [i for i, byte in enumerate(raw) if chr(byte).isdigit()]
    for i in digits:
        other = b"1" if raw[i : i + 1] != b"1" else b"2"
        (copy / MANIFEST).write_bytes(raw[:i] + other + raw[i + 1 :])
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.load(copy)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_file_missing(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name.replace('.', '[.]')}.*No such file"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_file_cut_short(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Bundle.load(copy)


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        Bundle.load(tmp_path / "nowhere")


KEYS = [*Description.model_fields, "schema_version", "architecture"]


@pytest.mark.parametrize("key", KEYS)
def test_key_missing(copy: Path, key: str) -> None:
    sign(copy, **{key: MISSING})
    with pytest.raises(BundleError, match=rf"manifest\.json: {key}: Field required"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"schema_version": 1}, "schema_version"),
        ({"schema_version": 2}, "nemt-dicom bundle upgrade"),
        ({"schema_version": 4}, "written by a newer release"),
        ({"training": {}}, "training.recipe"),
        ({"decision_threshold": 1.5}, "decision_threshold"),
        ({"decision_threshold": "high"}, "decision_threshold"),
        ({"mask_threshold": 0}, "mask_threshold"),
        ({"mask_threshold": 1}, "mask_threshold"),
        ({"evidence_margin": "nan"}, "evidence_margin"),
        ({"fill": "white"}, "fill"),
        ({"source_kinds": ["film"]}, "source_kinds"),
        ({"target": "effusion"}, "target"),
        ({"preprocessing": {"size": 96}}, "preprocessing"),
        ({"preprocessing": {"size": "96", "low_percentile": 0, "high_percentile": 1}}, "manifest"),
        ({"architecture": {"backbone": "resnet18"}}, "architecture|Architecture"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_manifest_that_is_not_understood(copy: Path, changes: dict[str, Any], words: str) -> None:
    sign(copy, **changes)
    with pytest.raises(BundleError, match=words) as caught:
        Bundle.load(copy)
    assert "manifest.json" in str(caught.value)


def test_nan_is_refused(copy: Path) -> None:
    """It has no form in JSON, and Python writes and reads one all the same."""
    values = {**content(copy), "evidence_margin": float("nan")}
    (copy / MANIFEST).write_bytes(signed(values, allow_nan=True))
    with pytest.raises(BundleError, match=r"manifest\.json: evidence_margin"):
        Bundle.load(copy)
    with pytest.raises(ValueError, match="JSON compliant"):
        signed(values)


@pytest.mark.parametrize(
    "changes",
    [{"backbone": "no_such_model"}, {"decoder_width": 8}, {"backbone": "test_resnet"}],
    ids=str,
)
def test_weights_that_do_not_fit_the_architecture(copy: Path, changes: dict[str, Any]) -> None:
    sign(copy, architecture={**content(copy)["architecture"], **changes})
    with pytest.raises(BundleError, match=r"model\.safetensors does not fit"):
        Bundle.load(copy).network("cpu")


# --- the self-test ---


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["target_model.classifier.bias"] += 0.2
    save_file(weights, folder / "model.safetensors")


def other_mask_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["explanation_module.head.bias"] += 0.2
    save_file(weights, folder / "model.safetensors")


def broken_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["explanation_module.head.bias"] += float("nan")
    save_file(weights, folder / "model.safetensors")


def other_golden_image(folder: Path) -> None:
    ds = pydicom.dcmread(folder / "golden.dcm")
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.save_as(folder / "golden.dcm")


def other_shape(folder: Path) -> None:
    arrays = load_arrays(folder / "golden.safetensors")
    arrays["mask"] = np.ascontiguousarray(arrays["mask"][:-1])
    save_arrays(arrays, folder / "golden.safetensors")


def no_response(folder: Path) -> None:
    arrays = load_arrays(folder / "golden.safetensors")
    del arrays["response"]
    save_arrays(arrays, folder / "golden.safetensors")


def other_preprocessing(folder: Path) -> None:
    sign(folder, preprocessing={"size": 96, "low_percentile": 5.0, "high_percentile": 95.0})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (other_weights, "response"),
        (other_mask_weights, "mask"),
        (broken_weights, "mask"),
        (other_golden_image, "tensor"),
        (other_shape, "mask"),
        (no_response, "response"),
        (other_preprocessing, "tensor"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_self_test_fails(copy: Path, change: Callable[[Path], None], word: str) -> None:
    """Every digest is right, and yet the bundle does not do what it once did."""
    change(copy)
    sign(copy)
    bundle = Bundle.load(copy)
    with pytest.raises(SelfTestError, match=word):
        bundle.self_test(bundle.network("cpu"))


@pytest.mark.parametrize(
    ("description", "architecture", "message"),
    [
        ({"source_kinds": ("photograph",)}, {}, "trained on photographs"),
        ({}, {"explains": "predicted"}, "explains whichever output is largest"),
        (
            {"target": "representation"},
            {"explains": "representation", "target": "representation", "activation": "none",
             "outputs": ()},
            "explains a representation",
        ),
    ],
    ids=["photographs", "predicted", "representation"],
)  # fmt: skip
def test_what_explains_no_patients_radiograph_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], description, architecture, message: str
) -> None:
    network = ExplainedNetwork(replace(random_network().architecture, **architecture))
    described = random_description().model_copy(update=description)
    save(tmp_path / "bundle", network, described, "# Random\n")
    assert Bundle.load(tmp_path / "bundle").manifest.name == "random"
    with pytest.raises(BundleError, match=message):
        Bundle.load_served(tmp_path / "bundle")
    arguments = ["explain", "x.dcm", "--out", str(tmp_path), "--bundle", str(tmp_path / "bundle")]
    assert cli.main(arguments) == 1
    assert message in " ".join(capsys.readouterr().err.split())
