"""A model bundle: everything a trained explanation needs, in one folder.

    manifest.json        what it is and the SHA-256 of every file, its own included
    model.safetensors    target model and explanation module
    golden.dcm           a synthetic radiograph
    golden.safetensors   what the bundle says of it: tensor, response, mask
    MODEL_CARD.md        what it was trained on, how well it does, what it is not for

The digest of a bundle is the SHA-256 of its manifest, which names all the others. There is no
pickle anywhere.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import BundleError, SelfTestError
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.explanation import Provenance
from nemt_dicom.model.network import Architecture, ExplainedNetwork, Fill
from nemt_dicom.model.preprocess import Preprocessing

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "golden.dcm", "golden.safetensors", "MODEL_CARD.md")
TENSOR_TOLERANCE = 1e-4
RESPONSE_TOLERANCE = 5e-3
MASK_TOLERANCE = 1e-2
"""Across processors and library releases; a wrong weight or step moves the answer further."""

Probability = Annotated[float, Field(ge=0, le=1)]


class Manifest(BaseModel):
    """`manifest.json`. Nothing in it has a default: a missing key is an error.

    decision_threshold: acts on the probability p; below it nothing is drawn.
    mask_threshold: makes the mask a segment.
    evidence_margin: how far p must fall when the segment is occluded.
    fill: what takes the place of occluded pixels.
    training, data: for people and for the model card. metrics: what `nemt-eval` measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2]
    name: str
    version: str
    target: str
    source_kinds: tuple[Literal["dicom", "picture", "photograph"], ...]
    decision_threshold: Probability
    mask_threshold: Annotated[float, Field(gt=0, lt=1)]
    evidence_margin: Annotated[float, Field(ge=-1, le=1)]
    fill: Fill
    preprocessing: dict[str, Any]
    architecture: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    sha256: dict[str, str]

    @property
    def evaluated(self) -> bool:
        """Whether it says how good the bundle's explanations are, by `nemt-eval`."""
        return bool(self.metrics.get("methods")) and "checks" in self.metrics


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle: every file has the digest its manifest gives."""

    folder: Path
    manifest: Manifest
    digest: str
    preprocessing: Preprocessing
    architecture: Architecture

    @classmethod
    def load(cls, folder: Path | None = None) -> "Bundle":
        """Reads and verifies a bundle folder; None is the bundle that ships.

        Raises `BundleError`, which names the file that is missing, damaged or of another version.
        """
        folder = shipped_folder() if folder is None else folder
        raw = _read(folder / MANIFEST)
        try:
            manifest = Manifest.model_validate_json(raw)
            preprocessing = Preprocessing.from_manifest(manifest.preprocessing)
            architecture = Architecture(**{k: _tuple(v) for k, v in manifest.architecture.items()})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{folder}/manifest.json: {where}: {first['msg']}") from error
        except (ValueError, TypeError) as error:
            raise BundleError(f"{folder}/manifest.json: {error}") from error
        _verify_manifest(folder / MANIFEST, raw)
        if manifest.target != architecture.target:
            raise BundleError(
                f"{folder}/manifest.json: target: {manifest.target!r}, but the architecture's is "
                f"{architecture.target!r}"
            )
        for name in FILES:
            found = hashlib.sha256(_read(folder / name)).hexdigest()
            if found != manifest.sha256.get(name):
                raise BundleError(
                    f"{folder / name} is damaged: its SHA-256 is {found[:12]}..., the manifest "
                    f"says {manifest.sha256.get(name, 'nothing')[:12]}...; install the bundle again"
                )
        return cls(
            folder=folder,
            manifest=manifest,
            digest=hashlib.sha256(raw).hexdigest(),
            preprocessing=preprocessing,
            architecture=architecture,
        )

    @classmethod
    def load_served(cls, folder: Path | None = None) -> "Bundle":
        """`load`, but of a bundle that may explain a patient's radiograph.

        Raises `BundleError` for one that was trained on photographs, and for one without a fixed
        target, whose mask would stand beside a probability that it does not explain.
        """
        bundle = cls.load(folder)
        if "photograph" in bundle.manifest.source_kinds:
            raise BundleError(
                f"{bundle.folder} was trained on photographs and cannot explain radiographs; name "
                "a bundle that was trained on radiographs"
            )
        if bundle.architecture.explains != "target":
            explained = {"predicted": "whichever output is largest"}.get(
                bundle.architecture.explains, "a representation"
            )
            raise BundleError(
                f"{bundle.folder} explains {explained}, not one target; train one with "
                "nemt-train --objective nemt"
            )
        return bundle

    @property
    def provenance(self) -> Provenance:
        """What every explanation by this bundle says of its origin."""
        m = self.manifest
        return Provenance(
            target=m.target,
            bundle_name=m.name,
            bundle_version=m.version,
            bundle_digest=self.digest,
            decision_threshold=m.decision_threshold,
            mask_threshold=m.mask_threshold,
            evidence_margin=m.evidence_margin,
        )

    @property
    def weights(self) -> Path:
        """The file of the network's tensors."""
        return self.folder / "model.safetensors"

    def network(self, device: str) -> ExplainedNetwork:
        """The network with this bundle's weights, float32, in evaluation mode."""
        path = self.weights
        try:
            network = ExplainedNetwork(self.architecture)
            weights = load_file(path)
            network.load_state_dict({k: _float32(v) for k, v in weights.items()})
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(f"{path} does not fit its architecture: {error}") from error
        network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU, same answer
        return network.to(device).eval()

    def self_test(self, network: ExplainedNetwork) -> None:
        """Replays the golden image on `network`; raises `SelfTestError` beyond tolerance."""
        found = replay(self.folder / "golden.dcm", self.preprocessing, network)
        try:
            arrays = load_arrays(self.folder / "golden.safetensors")
            expected = {name: arrays[name] for name in found}
        except (SafetensorError, KeyError) as error:
            raise SelfTestError(f"{self.folder}/golden.safetensors: {error}") from error
        limits = {
            "tensor": TENSOR_TOLERANCE,
            "response": RESPONSE_TOLERANCE,
            "mask": MASK_TOLERANCE,
        }
        for name, limit in limits.items():
            if expected[name].shape != found[name].shape:
                raise SelfTestError(f"golden {name} has shape {found[name].shape}")
            off = float(np.abs(expected[name] - found[name]).max())
            if not off <= limit:
                raise SelfTestError(
                    f"the golden image of {self.folder} gives another {name}: off by {off:.4g}, "
                    f"{limit:.4g} is allowed; the libraries or the hardware compute differently"
                )


def save(
    folder: Path,
    network: ExplainedNetwork,
    description: dict[str, Any],
    model_card: str,
    *,
    half: bool = True,
) -> Bundle:
    """Writes a bundle and reads it back.

    description: the manifest without `schema_version`, `architecture` and `sha256`. Weights
    are stored as `as_stored` says where `half`, else as they are; the golden answer is that of the
    stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        k: as_stored(v) if half else v.detach().cpu().contiguous()
        for k, v in network.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "MODEL_CARD.md").write_text(model_card, encoding="utf-8")
    golden_radiograph().save_as(folder / "golden.dcm", enforce_file_format=True)
    preprocessing = Preprocessing.from_manifest(description["preprocessing"])
    stored = ExplainedNetwork(network.architecture)
    stored.load_state_dict({k: _float32(v) for k, v in weights.items()})
    answer = replay(folder / "golden.dcm", preprocessing, stored)
    save_arrays(answer, folder / "golden.safetensors")
    for name in ("model.safetensors", "golden.safetensors"):  # safetensors makes them 0600
        (folder / name).chmod(0o644)
    manifest = Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            **description,
            "architecture": network.architecture.to_manifest(),
            "sha256": {n: hashlib.sha256(_read(folder / n)).hexdigest() for n in FILES},
        }
    )
    write_manifest(folder, manifest.model_dump(mode="json"))
    return Bundle.load(folder)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes `manifest.json` with its own SHA-256 entry set."""
    digest = hashlib.sha256(_manifest_bytes(content, "")).hexdigest()
    (folder / MANIFEST).write_bytes(_manifest_bytes(content, digest))


def _manifest_bytes(content: dict[str, Any], digest: str) -> bytes:
    """The one way a manifest is written; its own digest is taken while that entry is empty."""
    content = {**content, "sha256": {**content["sha256"], MANIFEST: digest}}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _verify_manifest(path: Path, raw: bytes) -> None:
    content = json.loads(raw)
    found = hashlib.sha256(_manifest_bytes(content, "")).hexdigest()
    if raw != _manifest_bytes(content, found):
        raise BundleError(
            f"{path} is damaged or was edited by hand: its own SHA-256 is another; install the "
            "bundle again"
        )


def replay(
    golden: Path, preprocessing: Preprocessing, network: ExplainedNetwork
) -> dict[str, NDArray[np.float32]]:
    """Tensor (1, S, S), response (1,) and mask (S, S) of a golden file, by the served path."""
    radiograph = Radiograph.from_dataset(pydicom.dcmread(golden), InputSettings())
    tensor, _ = preprocessing(radiograph)
    device = next(network.parameters()).device
    with torch.inference_mode():
        response, mask = network.explain(torch.from_numpy(tensor)[None].to(device))
    return {
        "tensor": tensor,
        "response": response.cpu().numpy().astype(np.float32),
        "mask": np.ascontiguousarray(mask[0, 0].cpu().numpy(), dtype=np.float32),
    }


def golden_radiograph() -> Dataset:
    """A synthetic DX image with two dark lungs and a bright patch: drawn by formula, of nobody.

    It comes as MONOCHROME1 with a rescale, a window and a mirrored PatientOrientation, so that a
    replay passes through every step of the front end.
    """
    rows, columns = 420, 350
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    scene = 0.75 + 0.15 * np.cos(y / 17.0) * (np.abs(x - 175) < 40)
    for centre in (100.0, 250.0):
        lung = ((x - centre) / 55) ** 2 + ((y - 210) / 140) ** 2
        scene -= 0.5 * np.exp(-(lung**3))
    scene += 0.45 * np.exp(-(((x - 240) / 30) ** 2 + ((y - 290) / 35) ** 2))
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    stored = np.rint((1 - scene[:, ::-1]) * 4000).astype("<u2")
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = "2.25.301437190011223344556677889900112233445"
    ds.StudyInstanceUID = "2.25.301437190011223344556677889900112233446"
    ds.SeriesInstanceUID = "2.25.301437190011223344556677889900112233447"
    ds.PatientName, ds.PatientID = "GOLDEN^SYNTHETIC", "GOLDEN"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.PatientOrientation = ["R", "F"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1000
    ds.WindowCenter, ds.WindowWidth = 3000, 8000
    ds.PixelData = stored.tobytes()
    return ds


def shipped_folder() -> Path:
    """The folder of the pneumonia bundle inside the installed package."""
    return Path(str(files("nemt_dicom") / "pneumonia"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; this is not a whole bundle") from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def as_stored(value: torch.Tensor) -> torch.Tensor:
    """A weight as a bundle stores it: float16, or float32 where it has fewer than 8192 values.

    The small ones (norms, first layers) cost little space, and rounding them moves p most.
    """
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and value.numel() >= 8192 else value
