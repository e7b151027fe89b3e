"""A model bundle: everything a trained explanation needs, in one folder.

    manifest.json        the description, and the SHA-256 of every file, itself included
    model.safetensors    target model and explanation module
    golden.dcm           a synthetic radiograph
    golden.safetensors   its recorded tensor, response and mask
    MODEL_CARD.md        its training data, its figures, its intended use and its limits
    evaluation.json      the figures of `nemt-eval`; absent if it was never evaluated

There is no pickle anywhere. A bundle has two digests. The digest of the folder is the SHA-256 of
the manifest, which names all other files: it shows whether the folder is whole. The model digest is
made from everything that decides an explanation: it names the model. Other figures and another
model card do not change it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensor_bytes

from nemt_dicom.errors import BundleError
from nemt_dicom.model import folder as bundle_folder
from nemt_dicom.model import golden
from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.explanation import Provenance
from nemt_dicom.model.manifest import (
    EVALUATION,
    FILES,
    MANIFEST,
    MODEL_CARD,
    SCHEMA_VERSION,
    WEIGHTS,
    Description,
    Manifest,
    canonical,
    signed,
)
from nemt_dicom.model.network import Architecture, ExplainedNetwork
from nemt_dicom.model.preprocess import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle: every file has the digest its manifest gives.

    digest: SHA-256 of the manifest, for integrity alone.
    evaluation: the figures of `nemt-eval`, None if the bundle was never evaluated.
    """

    folder: Path
    manifest: Manifest
    digest: str
    preprocessing: Preprocessing
    architecture: Architecture
    evaluation: Evaluation | None

    @classmethod
    def load(cls, folder: Path | None = None) -> "Bundle":
        """Reads and verifies a bundle folder; None is the bundle that ships.

        Raises `BundleError`, which names the file that is missing, damaged or of another version.
        """
        folder = shipped_folder() if folder is None else folder
        raw = bundle_folder.read(folder / MANIFEST)
        while True:
            try:
                return _verified(folder, raw)
            except BundleError:
                before, raw = raw, bundle_folder.read(folder / MANIFEST)
                # Another process may be replacing the bundle: its new files are read. If the
                # manifest is there already, they may just have taken their names.
                if raw == before:
                    return _verified(folder, raw)

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
    def model_digest(self) -> str:
        """SHA-256 of everything that decides an explanation: `Manifest.model_digest`."""
        return self.manifest.model_digest

    @property
    def provenance(self) -> Provenance:
        """The provenance of every explanation by this bundle."""
        m = self.manifest
        return Provenance(
            target=m.target,
            bundle_name=m.name,
            bundle_version=m.version,
            model_digest=self.model_digest,
            decision_threshold=m.decision_threshold,
            mask_threshold=m.mask_threshold,
            evidence_margin=m.evidence_margin,
        )

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return bundle_folder.current(self.folder, name, self.manifest.sha256[name])

    @property
    def weights(self) -> Path:
        """The file of the network's tensors."""
        return self.path(WEIGHTS)

    @property
    def model_card(self) -> str:
        """The text of the model card, Markdown."""
        return self.path(MODEL_CARD).read_text(encoding="utf-8")

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
        image, answer = self.path("golden.dcm"), self.path("golden.safetensors")
        golden.require_same(image, answer, self.preprocessing, network)


def save(
    folder: Path,
    network: ExplainedNetwork,
    description: Description,
    model_card: str,
    *,
    evaluation: Evaluation | None = None,
    half: bool = True,
) -> Bundle:
    """Writes a bundle and reads it back. A kill leaves the folder as it was, or the new bundle.

    half: whether weights are stored by `as_stored`; otherwise they are stored unchanged.

    The golden answer is computed with the stored weights.
    """
    weights = {
        k: as_stored(v) if half else v.detach().cpu().contiguous()
        for k, v in network.state_dict().items()
    }
    stored = ExplainedNetwork(network.architecture)
    stored.load_state_dict({k: _float32(v) for k, v in weights.items()})
    preprocessing = Preprocessing.from_manifest(description.preprocessing)
    content = {
        **description.model_dump(mode="json"),
        "schema_version": SCHEMA_VERSION,
        "architecture": network.architecture.to_manifest(),
        "sha256": {},
    }
    data = {
        WEIGHTS: tensor_bytes(weights),
        **golden.record(preprocessing, stored),
        **_written_about(evaluation, model_card),
    }
    return replace_files(folder, content, data)


def save_figures(bundle: Bundle, evaluation: Evaluation, model_card: str) -> Bundle:
    """Replaces the figures and the model card of a bundle, and reads it back.

    The model and its digest stay. A kill leaves the old bundle or the new one.
    """
    content = bundle.manifest.model_dump(mode="json")
    return replace_files(bundle.folder, content, _written_about(evaluation, model_card))


def _written_about(evaluation: Evaluation | None, model_card: str) -> dict[str, bytes]:
    """The figures and the model card, by file name."""
    figures = {} if evaluation is None else {EVALUATION: evaluation_bytes(evaluation)}
    return {MODEL_CARD: model_card.encode(), **figures}


def evaluation_bytes(evaluation: Evaluation) -> bytes:
    """`evaluation.json`: the part of an evaluation that a bundle keeps."""
    return canonical(evaluation.for_bundle().model_dump(mode="json"))


def replace_files(folder: Path, content: dict[str, Any], data: Mapping[str, bytes]) -> Bundle:
    """Replaces files of a bundle and its manifest by one step, and reads the bundle back.

    content: the manifest; its digests of the files in `data` are made anew. The new bundle is
    verified before it takes the place of the old one: a `BundleError` leaves the old one.
    """
    sha256 = {name: hashlib.sha256(value).hexdigest() for name, value in data.items()}
    raw = signed({**content, "sha256": {**content["sha256"], **sha256}})
    bundle_folder.replace(folder, data, raw, lambda: _verified(folder, raw))
    return Bundle.load(folder)


def _verified(folder: Path, raw: bytes) -> Bundle:
    """The bundle of a folder, verified. `raw` is its manifest."""
    where = folder / MANIFEST
    content = bundle_folder.parse(where, raw)
    try:
        manifest = Manifest.model_validate(content)
        preprocessing = Preprocessing.from_manifest(manifest.preprocessing)
        architecture = Architecture(**{k: _tuple(v) for k, v in manifest.architecture.items()})
    except ValidationError as error:
        raise BundleError(f"{where}: {bundle_folder.first_problem(error)}") from error
    except (ValueError, TypeError) as error:
        raise BundleError(f"{where}: {error}") from error
    bundle_folder.require_signature(where, raw, content)
    if manifest.target != architecture.target:
        raise BundleError(
            f"{where}: target: {manifest.target!r}, but the architecture's is "
            f"{architecture.target!r}"
        )
    for name in FILES:
        bundle_folder.require(folder, name, manifest.sha256.get(name))
    return Bundle(
        folder=folder,
        manifest=manifest,
        digest=hashlib.sha256(raw).hexdigest(),
        preprocessing=preprocessing,
        architecture=architecture,
        evaluation=_evaluation(folder, manifest),
    )


def _evaluation(folder: Path, manifest: Manifest) -> Evaluation | None:
    if not manifest.evaluated:
        return None
    path = bundle_folder.require(folder, EVALUATION, manifest.sha256[EVALUATION])
    try:
        return Evaluation.model_validate_json(bundle_folder.read(path))
    except ValidationError as error:
        raise BundleError(f"{path}: {bundle_folder.first_problem(error)}") from error


def shipped_folder() -> Path:
    """The folder of the pneumonia bundle inside the installed package."""
    return Path(str(files("nemt_dicom") / "pneumonia"))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def as_stored(value: torch.Tensor) -> torch.Tensor:
    """A weight as a bundle stores it: float16, or float32 if it has fewer than 8192 values.

    Small ones (norms, first layers) cost little space, and rounding them would change p most.
    """
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and value.numel() >= 8192 else value
