"""Tensors of files, kept on disk: one folder for each way of reading and preprocessing them.

`rows.bin` holds float32 tensors of one size one behind the other, `index.jsonl` a line a row: which
file it is of, by content, and its geometry. A line is written after its row is on disk, so that a
killed run leaves at most rows and half a line that no complete line names; the next run overwrites
them. Rows are never changed or moved, so that a memory map stays right while others add.
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
FRONT_END = (
    "intake/admission.py",
    "intake/display.py",
    "intake/pixel_data.py",
    "intake/radiograph.py",
    "intake/uid.py",
    "model/preprocess.py",
)
"""Files of nemt_dicom whose text decides what a file's tensor is."""
SERVICE = Path(nemt_dicom.__file__).parent
LIBRARIES = ("SimpleITK", "imagecodecs", "numpy", "pillow", "pydicom")
Key = tuple[str, str]
"""SHA-256 of the file, and the kind it is read as."""
Decoded = tuple[NDArray[np.float32], Geometry]


def cache_key(preprocessing: Preprocessing, channels: int) -> dict[str, Any]:
    """All that a file's tensor depends on but the file itself: JSON-able, the same in every run."""
    return {
        "format": FORMAT,
        "channels": channels,
        "preprocessing": preprocessing.to_manifest(),
        "front_end": front_end_digest(SERVICE),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def front_end_digest(package: Path) -> str:
    """SHA-256 over the text of `FRONT_END` below `package`, the folder of nemt_dicom."""
    sources = hashlib.sha256()
    for name in FRONT_END:
        sources.update((package / name).read_bytes() + b"\0")
    return sources.hexdigest()


@dataclass(kw_only=True, eq=False)
class TensorStore:
    """The folder of one cache key, as far as this run has read its index.

    shape: (C, S, S) of a row. known: row of each file. geometries: of each row.
    """

    folder: Path
    shape: tuple[int, int, int]
    known: dict[Key, int] = field(default_factory=dict)
    geometries: list[Geometry] = field(default_factory=list)
    _read: int = 0
    """Bytes of the index that are read: up to the end of its last complete line."""

    @classmethod
    def open(cls, cache: Path, preprocessing: Preprocessing, channels: int) -> "TensorStore":
        """Makes or finds the folder of this preprocessing; raises `DataError`."""
        key = json.dumps(cache_key(preprocessing, channels), indent=1, sort_keys=True)
        folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
        with _explained(cache):
            # the images of patients are not for other users of this machine
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            if not (folder / "key.json").exists():  # for people; nothing reads it
                (folder / "key.json").write_text(key + "\n", encoding="utf-8")
            for name in ("rows.bin", "index.jsonl", "lock"):
                (folder / name).touch()
            store = cls(folder=folder, shape=(channels, preprocessing.size, preprocessing.size))
            store.refresh()
        return store

    def refresh(self) -> None:
        """Reads what any run has added to the index since; stops at what is not complete."""
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
        """Only this run adds rows meanwhile; what others have added before is known."""
        with (self.folder / "lock").open("rb") as lock:
            with _explained(self.folder):
                fcntl.flock(lock, fcntl.LOCK_EX)  # the system gives it back even after kill -9
                self.refresh()
            yield

    def add(self, decoded: dict[Key, Decoded]) -> None:
        """Appends rows; the caller holds the lock. Raises `DataError`, such as for a full disk."""
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
            file.truncate()  # the half line of a killed run
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            os.fdatasync(file.fileno())

    def map(self) -> NDArray[np.float32]:
        """(M, C, S, S) float32, read-only: all rows known now."""
        shape = (len(self.geometries), *self.shape)
        return np.memmap(self.folder / "rows.bin", np.float32, mode="r", shape=shape)


def _geometry_entry(geometry: Geometry) -> dict[str, Any]:
    entry = asdict(geometry)
    del entry["size"]  # the same for the whole folder
    return entry


def _parsed(line: bytes) -> dict[str, Any] | None:
    """An index line, None where it was not written whole."""
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
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the image cache {folder} cannot be used ({error}); set NEMT_CACHE or --cache to "
            "a folder with room for it"
        ) from error
