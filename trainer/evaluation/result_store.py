"""Maps and scores that were computed before: a second evaluation computes only what is new.

The key of a result names everything that it depends on: the bundle's network, the method with its
settings, the image, our own code that takes part, and the versions of the libraries. A file appears
whole or not at all, so a killed evaluation leaves nothing wrong behind.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from nemt_dicom.files import write_whole
from nemt_dicom.model.bundle import Bundle

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")


def sources(*modules: Any) -> str:
    """SHA-256 of the modules' text."""
    text = hashlib.sha256()
    for module in modules:
        text.update(Path(module.__file__).read_bytes())
    return text.hexdigest()


@dataclass(frozen=True, kw_only=True)
class CodeVersions:
    """The version of our own code that makes each kind of result: `sources` of its modules.

    maps: the code that makes attribution maps.
    scores: the code that scores a map.
    tests: the code of the further tests (model dependence, stability, time).
    """

    maps: str
    scores: str
    tests: str


LIBRARIES = "torch", "timm", "quantus", "grad-cam", "captum", "numpy", "scipy"
"""Libraries that compute maps and scores."""


def library_versions() -> dict[str, str]:
    """The installed versions of `LIBRARIES`."""
    return {name: version(name) for name in LIBRARIES}


class ResultStore:
    """Results of one network on one kind of device, below a cache folder."""

    def __init__(
        self,
        cache: Path,
        bundle: Bundle,
        device: str,
        code: CodeVersions,
        libraries: dict[str, str] | None = None,
    ) -> None:
        """libraries: the versions that compute; None: the installed ones."""
        self.code = code
        manifest = bundle.manifest
        versions = library_versions() if libraries is None else libraries
        shared = manifest.sha256["model.safetensors"], manifest.architecture, device, versions
        self._shared = json.dumps(shared, sort_keys=True)
        self._folder = cache / "evaluation"

    def load(self, *key: str) -> Arrays | None:
        """The result kept under a key, or None if there is none or its file is damaged."""
        try:
            with self.path(*key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None

    def save(self, arrays: Arrays, *key: str) -> None:
        """Keeps a result."""
        path = self.path(*key)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        write_whole(path, content.getvalue(), shared=True)

    def remember(self, kind: TypeAdapter[T], compute: Callable[[], T], *key: str) -> T:
        """A result of typed figures; computed if none is kept, or if it is not of that type."""
        kept = self.load(*key)
        if kept is not None:
            try:
                return kind.validate_json(str(kept["json"]))
            except (KeyError, ValidationError):
                pass  # it is replaced below
        result = compute()
        self.save({"json": np.array(kind.dump_json(result).decode())}, *key)
        return result

    def path(self, *key: str) -> Path:
        """The file that a result has, or would have."""
        name = hashlib.sha256(json.dumps([self._shared, *key]).encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:34]}.npz"


def digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's bytes: of an image, or of a map."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
