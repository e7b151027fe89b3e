"""What every test may use: real radiographs, other programs, a bundle with random weights."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from nemt_dicom.model.bundle import Bundle, save
from nemt_dicom.model.manifest import MANIFEST, Description, signed
from nemt_dicom.model.network import Architecture, ExplainedNetwork

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("suite")

torch.set_num_threads(1)  # the networks here are small, and tests run side by side

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The trainer's cache of this test run, instead of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs, NEMT_TEST_DATA; tests that use it are marked `realdata`."""
    folder = Path(os.environ.get("NEMT_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "dicom-interop").is_dir():
        pytest.skip(f"no real radiographs in {folder}: set NEMT_TEST_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Finds another program; tests that use it are marked `servers`.

    Without it the test is skipped, but fails where CI is true.
    """
    beside_python = Path(sys.executable).parent  # where pynetdicom puts another storescu
    places = os.environ["PATH"].split(os.pathsep)
    elsewhere = os.pathsep.join(place for place in places if Path(place) != beside_python)

    def find(name: str) -> str:
        path = shutil.which(name, path=elsewhere)
        if path is None:
            missing = f"{name} is not installed"
            if os.environ.get("CI") == "true":
                pytest.fail(missing)
            pytest.skip(missing)
        return path

    return find


def random_network(
    backbone: str = "test_efficientnet", neighbourhood: int = 21
) -> ExplainedNetwork:
    """A small network with fixed random weights whose answers differ from image to image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = ExplainedNetwork(
            Architecture(
                backbone=backbone,
                outputs=("effusion", "pneumonia"),
                activation="sigmoid",
                target="pneumonia",
                explains="target",
                embedding=0,
                pixel_mean=(0.485, 0.456, 0.406),
                pixel_std=(0.229, 0.224, 0.225),
                decoder="light",
                decoder_width=16,
                decoder_norm="batch",
                neighbourhood=neighbourhood,
                follows=False,
            )
        )
        head = network.target_model.get_classifier()
        torch.nn.init.normal_(head.weight, std=0.3)
        torch.nn.init.normal_(network.explanation_module.head.weight, std=1.0)
        network.train()
        network.target_model.train()  # gives its batch norms the statistics of some images
        with torch.no_grad():
            for _ in range(5):
                coarse = torch.rand(8, 1, 12, 12)
                network(
                    torch.nn.functional.interpolate(coarse, size=96, mode="bicubic").clamp(0, 1)
                )
    return network.eval()


def random_description() -> Description:
    """The manifest of `random_bundle`: it draws a segment in nearly every image."""
    return Description(
        name="random",
        version="0",
        target="pneumonia",
        source_kinds=("dicom", "picture"),
        decision_threshold=0.0,
        mask_threshold=0.5,
        evidence_margin=-1.0,
        fill="black",
        preprocessing={"size": 96, "low_percentile": 0.0, "high_percentile": 100.0},
        training=None,
        data=None,
    )


def description_of(bundle: Bundle) -> Description:
    """What was said of a bundle when it was saved."""
    said = bundle.manifest.model_dump(mode="json", include=set(Description.model_fields))
    return Description.model_validate(said)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Forges a manifest: every digest is right."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST]
    sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / MANIFEST).write_bytes(signed({**content, "sha256": sha256}))


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle with random weights, small and fast: it explains nothing, but draws."""
    folder = tmp_path_factory.mktemp("bundle") / "random"
    return save(folder, random_network(), random_description(), "# Random weights\n")
