"""Files that are whole or absent: the operations that durability rests on, and a way to write."""

import contextlib
import os
import secrets
from collections.abc import Iterator
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


@contextlib.contextmanager
def replacing(path: Path, *, fs: Fs | None = None, shared: bool = False) -> Iterator[Path]:
    """A draft beside `path` to write to, which takes the place of `path` at the end.

    A reader sees the whole file, or the earlier one, or none. The file is on the disk at the end:
    the draft is synced, renamed into place, and its folder is synced.

    shared: whether several processes may write this path at the same time; the last one wins. Each
        has a draft with a name of its own then, and a killed one leaves it behind. Otherwise the
        draft is `.NAME.part`, and the next writer removes what a killed one left.

    Raises `OSError` if the disk is full or fails. `path` is as it was then, and the draft is gone.
    """
    fs = fs or Fs()
    name = f"{path.name[:180]}.{secrets.token_hex(6)}" if shared else path.name
    draft = path.with_name(f".{name}.part")
    try:
        fs.unlink(draft)
        yield draft
        fs.fsync(draft)
        fs.rename(draft, path)
        fs.fsync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.unlink(draft)
        raise


def write_whole(
    path: Path, data: bytes | str, *, fs: Fs | None = None, shared: bool = False
) -> None:
    """Writes a file, or replaces it, in one step; see `replacing`. Text is written as UTF-8."""
    fs = fs or Fs()
    with replacing(path, fs=fs, shared=shared) as draft:
        fs.write(draft, data.encode() if isinstance(data, str) else data)
