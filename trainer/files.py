"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes a file, or replaces it, in one step: a kill leaves the old file or the new one.

    The data are on the disk before the name is. Text is written as UTF-8. Several processes may
    write the same file; the last one wins. Raises `OSError`; then no draft is left behind.
    """
    content = data.encode() if isinstance(data, str) else data
    draft = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
