"""Which code, libraries and processor made a result."""

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from nemt_dicom import __version__
from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import CodeState
from nemt_dicom.model.manifest import Training, TrainingData


def libraries() -> dict[str, str]:
    """The versions that decide a run's bits, beside this one's."""
    return {name: version(name) for name in ("torch", "timm", "prodigyopt")}


def file_digest(path: Path | None) -> str | None:
    """SHA-256 of a file of weights: what the bundle keeps of where they came from."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None


def code_state() -> CodeState:
    """Which code trains: release, commit, whether it was changed since, digest of the sources."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    sources = hashlib.sha256()
    for path in sorted([*root.glob("trainer/**/*.py"), *root.glob("nemt_dicom/**/*.py")]):
        sources.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    changes = git("status", "--porcelain", "--", "trainer/*.py", "nemt_dicom/*.py")
    return CodeState(
        version=__version__,
        commit=git("rev-parse", "--verify", "HEAD") or "unknown",
        dirty=None if changes is None else bool(changes),
        sources=sources.hexdigest(),
    )


def training_of(bundle: Bundle) -> tuple[Training, TrainingData]:
    """How a bundle was trained, and on what. Raises `DataError` if nemt-train did not make it."""
    training, data = bundle.manifest.training, bundle.manifest.data
    if training is None or data is None:
        raise DataError(
            f"{bundle.folder} was not made by nemt-train, so that it says nothing of its training "
            "and of its data; name a bundle that nemt-train made"
        )
    return training, data


def device_name(device: str, threads: int) -> str:
    """The processor as people name it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return f"{model or platform.machine()}, {threads} thread{'s' * (threads > 1)}"
