"""Files that are whole or absent: the operations that durability rests on, and a way to write."""

import contextlib
import os
from pathlib import Path


class Fs:
    """The file operations durability rests on, in one place so that a test can fail or cut them."""

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""
        return path.read_bytes()

    def write(self, path: Path, data: bytes) -> None:
        """Writes a new file. It is an error if `path` exists."""
        with path.open("xb") as file:
            file.write(data)

    def fsync(self, path: Path) -> None:
        """Forces a file's content, or a folder's entries, to the disk."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        """Makes a folder, which by default only the owner can enter. It may exist."""
        path.mkdir(mode=mode, exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        """Renames a file; an existing `target` is replaced in one step."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Removes a file. It may be missing."""
        path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, *, fs: Fs | None = None) -> None:
    """Writes `data` to `path`: a reader sees the whole file, or the earlier one, or none.

    The file is on the disk when the function returns: written as `.NAME.part`, synced, renamed
    into place, its folder synced. An existing file is replaced. Two writers of one path must not
    run at the same time, for they share the draft.

    Raises `OSError` if the disk is full or fails. The draft is removed then.
    """
    fs = fs or Fs()
    draft = path.with_name(f".{path.name}.part")
    try:
        fs.unlink(draft)  # a killed writer may have left one
        fs.write(draft, data)
        fs.fsync(draft)
        fs.rename(draft, path)
        fs.fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.unlink(draft)
        raise
