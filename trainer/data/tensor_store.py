"""Preprocessed tensors on disk: one folder for each version of the code and of the preprocessing.

`rows.bin` holds float32 tensors of one size, one after the other. `index.jsonl` has one line for
each row: the SHA-256 of its file, and its geometry. A line is written after its row is on disk. So
a killed run leaves only rows without a line, and half a line. The next run overwrites them. A row
is never changed or moved, so a memory map stays valid while another run adds rows.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nemt_dicom
from nemt_dicom.errors import DataError
from nemt_dicom.model.preprocess import Geometry, Preprocessing

FORMAT = 1
"""Version of the layout of the files."""
FRONT_END = (
    "intake/admission.py",
    "intake/display.py",
    "intake/pixel_data.py",
    "intake/radiograph.py",
    "intake/uid.py",
    "model/preprocess.py",
)
"""Files of nemt_dicom that compute the tensor of an image. Their text is in the cache key."""
SERVICE = Path(nemt_dicom.__file__).parent
LIBRARIES = ("SimpleITK", "imagecodecs", "numpy", "pillow", "pydicom")
"""Libraries that compute the tensor of an image. Their versions are in the cache key."""
Key = tuple[str, str]
"""SHA-256 of the file, and the kind as which it is read."""
Decoded = tuple[NDArray[np.float32], Geometry]
"""(C, S, S) float32 in [0, 1], and its geometry."""


def cache_key(preprocessing: Preprocessing, channels: int) -> dict[str, Any]:
    """Everything but the file that decides its tensor, for JSON. It is the same in every run."""
    return {
        "format": FORMAT,
        "channels": channels,
        "preprocessing": preprocessing.to_manifest(),
        "front_end": front_end_digest(SERVICE),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def front_end_digest(package: Path) -> str:
    """SHA-256 of the text of all `FRONT_END` files.

    package: the folder of nemt_dicom.
    """
    sources = hashlib.sha256()
    for name in FRONT_END:
        sources.update((package / name).read_bytes() + b"\0")
    return sources.hexdigest()


@dataclass(kw_only=True, eq=False)
class TensorStore:
    """The folder of one cache key, and the part of its index that this run has read.

    folder: the folder.
    shape: (C, S, S), the shape of a row.
    known: number of the row of each file.
    geometries: the geometry of each row.
    """

    folder: Path
    shape: tuple[int, int, int]
    known: dict[Key, int] = field(default_factory=dict)
    geometries: list[Geometry] = field(default_factory=list)
    _read: int = 0
    """Number of bytes of the index that are read: up to the end of its last complete line."""

    @classmethod
    def open(cls, cache: Path, preprocessing: Preprocessing, channels: int) -> "TensorStore":
        """Opens the folder of this preprocessing, or makes it.

        cache: folder of the cache.
        channels: 1 for radiographs, 3 for photographs.

        Raises `DataError` if the folder cannot be used.
        """
        key = json.dumps(cache_key(preprocessing, channels), indent=1, sort_keys=True)
        folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
        with _explained(cache):
            # Other users of this machine must not read images of patients.
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            if not (folder / "key.json").exists():  # for people; no program reads it
                (folder / "key.json").write_text(key + "\n", encoding="utf-8")
            for name in ("rows.bin", "index.jsonl", "lock"):
                (folder / name).touch()
            store = cls(folder=folder, shape=(channels, preprocessing.size, preprocessing.size))
            store.refresh()
        return store

    def refresh(self) -> None:
        """Reads the lines that any run has added to the index, up to the first incomplete one."""
        row_bytes = 4 * int(np.prod(self.shape))
        complete = (self.folder / "rows.bin").stat().st_size // row_bytes
        with (self.folder / "index.jsonl").open("rb") as file:
            file.seek(self._read)
            for line in file:
                entry = _parsed(line)
                row = len(self.geometries)
                if entry is None or entry["row"] != row or row >= complete:
                    return
                self.known[entry["sha256"], entry["kind"]] = row
                self.geometries.append(
                    Geometry(
                        rows=entry["rows"],
                        columns=entry["columns"],
                        orientation=tuple(entry["orientation"]),
                        size=self.shape[1],
                        aspect=entry["aspect"],
                    )
                )
                self._read += len(line)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock, so only this run adds rows. First reads the rows of other runs."""
        with (self.folder / "lock").open("rb") as lock:
            with _explained(self.folder):
                fcntl.flock(lock, fcntl.LOCK_EX)  # released even after kill -9
                self.refresh()
            yield

    def add(self, decoded: dict[Key, Decoded]) -> None:
        """Appends rows. The caller holds the lock.

        Raises `DataError` if they cannot be written, for example on a full disk.
        """
        with _explained(self.folder):
            self._append(decoded)
            self.refresh()

    def _append(self, decoded: dict[Key, Decoded]) -> None:
        first = len(self.geometries)
        with (self.folder / "rows.bin").open("r+b") as file:
            file.seek(first * 4 * int(np.prod(self.shape)))
            for tensor, _ in decoded.values():
                file.write(np.ascontiguousarray(tensor, np.float32).data)
            file.flush()
            os.fdatasync(file.fileno())
        lines = [
            {"row": first + i, "sha256": digest, "kind": kind, **_geometry_entry(geometry)}
            for i, ((digest, kind), (_, geometry)) in enumerate(decoded.items())
        ]
        with (self.folder / "index.jsonl").open("r+b") as file:
            file.seek(self._read)
            file.truncate()  # removes the half line of a killed run
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            os.fdatasync(file.fileno())

    def map(self) -> NDArray[np.float32]:
        """(M, C, S, S) float32: a read-only memory map of all rows that are known now."""
        shape = (len(self.geometries), *self.shape)
        return np.memmap(self.folder / "rows.bin", np.float32, mode="r", shape=shape)


def _geometry_entry(geometry: Geometry) -> dict[str, Any]:
    entry = asdict(geometry)
    del entry["size"]  # the same for the whole folder
    return entry


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The content of an index line; None if the line is incomplete or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    names = {"row", "sha256", "kind", "rows", "columns", "orientation", "aspect"}
    return entry if isinstance(entry, dict) and entry.keys() == names else None


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns an `OSError` into a `DataError` that names the cache and a remedy."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the image cache {folder} cannot be used ({error}); set NEMT_CACHE or --cache to "
            "a writable folder with enough space"
        ) from error
