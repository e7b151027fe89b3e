"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to; it takes the place of `path` in one step at the end.

    A kill leaves the old file or the new one. Several processes may write the same file; the last
    one wins. An error leaves `path` as it was and no draft. Raises `OSError`.
    """
    draft = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Replaces a file by these data, which are on the disk before the name is.

    Text is written as UTF-8. Raises `OSError`.
    """
    content = data.encode() if isinstance(data, str) else data
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
