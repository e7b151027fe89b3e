"""The files of a bundle folder: read by their digests, and replaced so that a kill does no harm.

New files are first written beside the old ones, as `NAME.new`. One rename then decides: that of
`manifest.json`. Before it the folder is the old bundle, after it the new one. The other files take
their names afterwards; until then a reader finds them as `NAME.new`, by the manifest's digests.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemt_dicom.errors import BundleError
from nemt_dicom.model.manifest import EVALUATION, FILES, MANIFEST, SCHEMA_VERSION, signed

NEW = ".new"
REPLACEABLE = (*FILES, EVALUATION)


def read(path: Path) -> bytes:
    """The bytes of a file. Raises `BundleError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; this is not a whole bundle") from error


def parse(where: Path, raw: bytes) -> dict[str, Any]:
    """The JSON of a manifest of SCHEMA_VERSION. Raises `BundleError`, with advice for another."""
    content = parse_any(where, raw)
    version = content.get("schema_version", SCHEMA_VERSION)
    if version == 2:
        raise BundleError(
            f"{where}: schema_version 2, of a release before 0.8; convert the bundle with "
            f"nemt-dicom bundle upgrade {where.parent}"
        )
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema_version {version} was written by a newer release, and this one reads "
            f"{SCHEMA_VERSION}; upgrade nemt-dicom"
        )
    return content


def parse_any(where: Path, raw: bytes) -> dict[str, Any]:
    """The JSON of a manifest of any schema. Raises `BundleError`."""
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise BundleError(f"{where} is damaged: {error}; install the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{where} is no manifest; this is not a bundle")
    return content


def require_signature(
    where: Path, raw: bytes, content: dict[str, Any], *, allow_nan: bool = False
) -> None:
    """Raises `BundleError` if a manifest's own SHA-256 is another."""
    try:
        whole = raw == signed(content, allow_nan=allow_nan)
    except (LookupError, TypeError, ValueError):
        whole = False
    if not whole:
        raise BundleError(
            f"{where} is damaged or was edited by hand: its own SHA-256 is another; install the "
            "bundle again"
        )


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a value of a bundle: where it stands, and what it is."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def current(folder: Path, name: str, digest: str) -> Path:
    """Where the file `name` of this SHA-256 lies, if a kill came before it took its name."""
    draft = folder / f"{name}{NEW}"
    return draft if draft.is_file() and _has(draft, digest) else folder / name


def require(folder: Path, name: str, digest: str | None) -> Path:
    """The path of a file that has this SHA-256. Raises `BundleError` if it has another."""
    path = current(folder, name, digest or "")
    actual = hashlib.sha256(read(path)).hexdigest()
    if actual != digest:
        raise BundleError(
            f"{path} is damaged: its SHA-256 is {actual[:12]}..., the manifest says "
            f"{(digest or 'nothing')[:12]}...; install the bundle again"
        )
    return path


def replace(
    folder: Path, files: Mapping[str, bytes], manifest: bytes, check: Callable[[], object]
) -> None:
    """Makes `folder` the bundle of `manifest`: writes `files`, keeps its other files.

    check: called when all is written and nothing is replaced; if it raises, the folder stays the
    old bundle. Raises `OSError` if the disk is full, and leaves the old bundle then, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    try:
        for name, data in {**files, MANIFEST: manifest}.items():
            _write(folder / f"{name}{NEW}", data)
        check()
        (folder / f"{MANIFEST}{NEW}").replace(folder / MANIFEST)
        _synchronise(folder)
    finally:
        settle(folder)


def settle(folder: Path) -> None:
    """Ends what a kill interrupted: files take their names, drafts of no use are removed."""
    digests = _digests(folder)
    for name in REPLACEABLE:
        draft = folder / f"{name}{NEW}"
        if draft.is_file() and name in digests and _has(draft, digests[name]):
            draft.replace(folder / name)
        else:
            draft.unlink(missing_ok=True)
    (folder / f"{MANIFEST}{NEW}").unlink(missing_ok=True)
    if digests and EVALUATION not in digests:
        (folder / EVALUATION).unlink(missing_ok=True)


def _digests(folder: Path) -> dict[str, str]:
    """What the manifest says of the files; empty if there is no manifest that can be read."""
    try:
        return dict(json.loads((folder / MANIFEST).read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _has(path: Path, digest: str) -> bool:
    return hashlib.sha256(read(path)).hexdigest() == digest


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _synchronise(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
