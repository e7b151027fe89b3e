"""Content-addressed files that survive a power cut.

    <state>/lock                    held while a service runs, holds its process id
    <state>/store.db                the database (store.py)
    <state>/store.db.v1             a copy of it, made before it was migrated (database.py)
    <state>/spool/tmp/<process>/    files being written; swept when the process starts
    <state>/spool/blob/ab/<sha256>  finished files, named by the hash of their content

A blob is durable when `put` or `adopt` returns: file written, file synced, folder made and its
parent synced, file renamed into place, folder synced.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Container
from pathlib import Path
from types import TracebackType

from nemt_dicom.errors import DamagedBlob, StateError, StateInUse
from nemt_dicom.files import Fs

CHUNK = 1 << 20  # bytes
CHILD_PATIENCE_S = 10.0


class Spool:
    """The blobs of a state folder. `process` names the folder for the temporaries of this process.

    Methods raise `OSError` if the disk is full or broken. Nothing was stored then.
    """

    def __init__(self, state_dir: Path, *, process: str, fs: Fs | None = None) -> None:
        self.fs = fs or Fs()
        self.root = state_dir / "spool"
        self.blobs = self.root / "blob"
        self.tmp = self.root / "tmp" / process
        self._durable_folders: set[Path] = set()

    def prepare(self) -> None:
        """Makes the folders and removes what a killed predecessor left in `tmp`."""
        for folder in (self.root, self.blobs, self.root / "tmp", self.tmp):
            self._make_folder(folder)
        for leftover in self.tmp.iterdir():
            self.fs.unlink(leftover)

    def path(self, digest: str) -> Path:
        """The place of the blob with this SHA-256 (lower-case hexadecimal). It may not exist."""
        return self.blobs / digest[:2] / digest

    def read(self, digest: str) -> bytes:
        """The bytes of a blob, exactly as they were stored.

        Raises `DamagedBlob` if they have changed, `FileNotFoundError` if there is no blob, and
        another `OSError` if they cannot be read.
        """
        data = self.fs.read(self.path(digest))
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedBlob("its bytes are damaged")
        return data

    def has_lost(self, digest: str) -> bool:
        """Whether the bytes of a blob are certainly missing or damaged.

        A failing disk is no certainty, nor is a spool without any blob: it may not be mounted.
        """
        try:
            self.read(digest)
        except DamagedBlob:
            return True
        except FileNotFoundError:
            return self.holds_anything()
        except OSError:
            return False
        return False

    def put(self, data: bytes) -> str:
        """Stores `data`; returns its SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        self.store(digest, data)
        return digest

    def store(self, digest: str, data: bytes) -> None:
        """Stores `data`, whose SHA-256 the caller knows to be `digest`."""
        temporary = self.tmp / uuid.uuid4().hex
        try:
            self.fs.write(temporary, data)
            self.adopt(temporary, digest)
        except BaseException:
            self.fs.unlink(temporary)
            raise

    def adopt(self, temporary: Path, digest: str) -> str:
        """Moves a finished file of `tmp`, whose SHA-256 is `digest`, to its place; returns it.

        If the blob exists, it keeps its time of change, the time of the first receipt. A file whose
        fsync failed must not be tried again: the caller removes it.
        """
        target = self.path(digest)
        with contextlib.suppress(FileNotFoundError):
            os.utime(temporary, ns=(time.time_ns(), target.stat().st_mtime_ns))
        self.fs.fsync(temporary)
        self._make_folder(target.parent)
        # Also if the blob exists: it has the same content, and its entry may not be synced yet.
        self.fs.rename(temporary, target)
        self.fs.fsync(target.parent)
        return digest

    def sweep(
        self, referenced: Container[str], wanted: Callable[[Path], bool] = lambda _path: False
    ) -> int:
        """Removes all temporaries and all unwanted blobs; returns the number of removed blobs.

        A blob is unwanted if it is not in `referenced` and `wanted(path)` is false. The oldest blob
        is asked first. Only the holder of the state lock may call this, before it starts other
        processes.
        """
        self.prepare()
        for leftover in (self.root / "tmp").glob("*/*"):
            self.fs.unlink(leftover)
        orphans = [path for path in self.blobs.glob("??/*") if path.name not in referenced]
        removed = 0
        for path in sorted(orphans, key=lambda path: path.stat().st_mtime_ns):
            if not wanted(path):
                self.fs.unlink(path)
                removed += 1
        return removed

    def free_bytes(self) -> int:
        """Free space on the spool's disk."""
        return shutil.disk_usage(self.root).free

    def holds_anything(self) -> bool:
        """Whether there is any blob. If not, the disk of the spool may not be mounted."""
        try:
            return any(self.blobs.iterdir())
        except OSError:
            return False

    def _make_folder(self, folder: Path) -> None:
        # Another process may have made it without syncing its entry yet, so sync it once ourselves.
        if folder not in self._durable_folders:
            self.fs.mkdir(folder)
            self.fs.fsync(folder.parent)
            self._durable_folders.add(folder)


def prepare_state_dir(state_dir: Path) -> None:
    """Makes the state folder, mode 0700. Raises `StateError` if it cannot be used.

    An existing folder is closed to others only if it is empty or already a state folder.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = not any(state_dir.iterdir()) or (state_dir / "spool").exists()
        if ours:
            state_dir.chmod(0o700)
    except OSError as error:
        raise StateError(f"state folder {state_dir}: {error.strerror}") from error


class StateLock:
    """Holds the state folder for this process, as a context manager.

    The lock ends with the process that holds it, however that ends: the file is never inherited.
    Raises `StateInUse`, which names the process id, if another process holds it.
    """

    def __init__(self, state_dir: Path, *, child_patience_s: float = CHILD_PATIENCE_S) -> None:
        """`child_patience_s`: seconds for the children of a killed predecessor to be gone."""
        self._dir = state_dir
        self._child_patience_s = child_patience_s
        self._file = -1

    def __enter__(self) -> "StateLock":
        path = self._dir / "lock"
        self._file = _open_lock(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            holder = path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
            raise StateInUse(
                f"state folder {self._dir} is in use by another nemt-dicom serve, process {holder}"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode("ascii"), 0)
        self._await_children()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def _await_children(self) -> None:
        """Waits until no child of a killed predecessor is left: they hold the port and the tmp."""
        handle = _open_lock(self._dir / "lock.children")
        try:
            deadline = time.monotonic() + self._child_patience_s
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        os.close(self._file)
                        raise StateInUse(
                            f"state folder {self._dir}: processes of an earlier nemt-dicom serve "
                            "do not end"
                        ) from None
                    time.sleep(0.02)
        finally:
            os.close(handle)


def hold_as_child(state_dir: Path) -> None:
    """Marks this process as a child of the service, until it ends."""
    fcntl.flock(_open_lock(state_dir / "lock.children"), fcntl.LOCK_SH)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
