"""The files of a bundle folder: read by their digests, and replaced so that a kill does no harm.

New files are first written beside the old ones, as `NAME.new`. One rename then decides: that of
`manifest.json`. Before it the folder is the old bundle, after it the new one. The other files take
their names afterwards; until then a reader finds them as `NAME.new`, by the manifest's digests.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nemt_dicom.errors import BundleError
from nemt_dicom.files import Fs
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
    """Raises `BundleError` if the SHA-256 of a manifest is not the one that it states."""
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
    """The place and the message of the first problem."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def current(folder: Path, name: str, digest: str) -> Path:
    """The path of the file `name` with this SHA-256: `NAME.new` if a kill left it there."""
    draft = folder / f"{name}{NEW}"
    return draft if _has(draft, digest) else folder / name


def require(folder: Path, name: str, digest: str | None) -> Path:
    """The path of a file that has this SHA-256. Raises `BundleError` if it has another."""
    path = folder / name
    try:
        path = current(folder, name, digest or "")
        # `current` has compared a draft. To read it again could miss it: `settle` renames it.
        actual = _sha256(path) if path.name == name else digest
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; this is not a whole bundle") from error
    if actual != digest:
        raise BundleError(
            f"{path} is damaged: its SHA-256 is {str(actual)[:12]}..., the manifest says "
            f"{(digest or 'nothing')[:12]}...; install the bundle again"
        )
    return path


def replace(
    folder: Path, files: Mapping[str, bytes], manifest: bytes, check: Callable[[], object]
) -> None:
    """Makes `folder` the bundle of `manifest`: writes `files`, keeps its other files.

    check: called when all is written and nothing is replaced; if it raises, the folder stays the
        old bundle.

    Raises `OSError` if the disk is full or fails. The folder stays the old bundle then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    fs = Fs()
    try:
        for name, data in {**files, MANIFEST: manifest}.items():
            draft = folder / f"{name}{NEW}"
            fs.write(draft, data)
            fs.fsync(draft)
        check()
        fs.fsync(folder)  # a power cut must not keep the rename below and lose a new file
        (folder / f"{MANIFEST}{NEW}").replace(folder / MANIFEST)
        fs.fsync(folder)
    finally:
        settle(folder)


def settle(folder: Path) -> None:
    """Finishes a replacement that a kill interrupted.

    New files that the manifest names take their names. All other drafts are removed. Raises
    `OSError` if the manifest exists and cannot be read: nothing is removed then.
    """
    digests = _digests(folder)
    for name in REPLACEABLE:
        draft = folder / f"{name}{NEW}"
        if name in digests and _has(draft, digests[name]):
            draft.replace(folder / name)
        else:
            _remove(draft)
    _remove(folder / f"{MANIFEST}{NEW}")
    if digests and EVALUATION not in digests:
        _remove(folder / EVALUATION)


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by the manifest; empty if the manifest is missing or damaged."""
    try:
        return dict(json.loads((folder / MANIFEST).read_bytes())["sha256"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _has(path: Path, digest: str) -> bool:
    """Whether the file exists and has this SHA-256."""
    try:
        return _sha256(path) == digest
    except FileNotFoundError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Removes a file. If it is missing, the folder may be read-only."""
    if path.exists():
        path.unlink(missing_ok=True)
