"""Maps and scores that were computed before: a second evaluation computes only what is new.

A result is kept under what it is of: the bundle's network, the method with its settings, the image,
our own code that takes part, and the versions of the libraries. A file appears whole or not at all,
so a killed evaluation leaves nothing that is wrong.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.model.bundle import Bundle

Arrays = dict[str, NDArray[Any]]


def sources(*modules: Any) -> str:
    """SHA-256 of the modules' text."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()


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
"""Which versions compute maps and scores."""


class ResultStore:
    """Results of one network on one kind of device, below a cache folder."""

    def __init__(self, cache: Path, bundle: Bundle, device: str, code: CodeVersions) -> None:
        self.code = code
        manifest = bundle.manifest
        libraries = {name: version(name) for name in LIBRARIES}
        of_all = manifest.sha256["model.safetensors"], manifest.architecture, device, libraries
        self._of_all = json.dumps(of_all, sort_keys=True)
        self._folder = cache / "evaluation"

    def load(self, *of: str) -> Arrays | None:
        """The result of `of`, or None where it is not there."""
        try:
            with self._path(of).open("rb") as file, np.load(file, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None

    def save(self, arrays: Arrays, *of: str) -> None:
        """Keeps a result."""
        path = self._path(of)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        draft.replace(path)

    def remember(self, compute: Callable[[], dict[str, Any]], *of: str) -> dict[str, Any]:
        """A JSON-able result of `of`, computed where it is not there."""
        known = self.load(*of)
        if known is not None:
            found: dict[str, Any] = json.loads(str(known["json"]))
            return found
        result = compute()
        self.save({"json": np.array(json.dumps(result))}, *of)
        return result

    def _path(self, of: tuple[str, ...]) -> Path:
        name = hashlib.sha256(json.dumps([self._of_all, *of]).encode()).hexdigest()
        return self._folder / name[:2] / f"{name[2:34]}.npz"


def digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's bytes: of an image, or of a map."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
