"""One received file on its way through check, spool and database. Knows nothing of the network."""

import errno
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nemt_dicom.config import Settings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.header import dataset_offset, scan_header, valid_uid
from nemt_dicom.log import escape
from nemt_dicom.records import Arrival, Receipt, Rejection
from nemt_dicom.spool import CHUNK, Spool
from nemt_dicom.store import Store


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a C-STORE request says of its dataset: the command's UIDs, and the presentation
    context's abstract and transfer syntax.
    """

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax_uid: str
    transfer_syntax_uid: str


class Receiver:
    """Keeps what is received, or refuses it."""

    def __init__(self, settings: Settings, spool: Spool, store: Store) -> None:
        self._settings = settings
        self._spool = spool
        self._store = store

    def keep(self, path: Path, request: Request) -> Receipt:
        """Stores the Part 10 file at `path`, in the spool's tmp; durable on return.

        Raises `Refused` where the instance is not to be sent again unchanged, then a refusal is
        recorded, or `OSError` where there is no room.
        """
        if self._spool.free_bytes() < self._settings.listener.min_free_mb * 1_000_000:
            raise OSError(errno.ENOSPC, "too little free space in the state folder")
        blob, content = digests(path)
        try:
            self._check(path, request)
        except Refused as refusal:
            self._store.refuse_arrival(
                Rejection(
                    sop_class_uid=_shown(request.sop_class_uid),
                    sop_instance_uid=_shown(request.sop_instance_uid),
                    content_digest=content,
                    reason=refusal.reason,
                    detail=refusal.detail,
                )
            )
            raise
        arrival = Arrival(
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            content_digest=content,
            blob=self._spool.adopt(path, blob),
            received=datetime.now(UTC),
        )
        return self._store.receive(arrival)

    def _check(self, path: Path, request: Request) -> None:
        asked = (request.sop_class_uid, request.sop_instance_uid)
        if not all(valid_uid(uid) for uid in asked):
            raise Refused(Reason.INVALID_UID, "a UID of the C-STORE command is not valid")
        if request.sop_class_uid != request.abstract_syntax_uid:
            raise Refused(Reason.UID_MISMATCH, "SOP class differs from presentation context")
        header = scan_header(
            path,
            transfer_syntax_uid=request.transfer_syntax_uid,
            max_megapixels=self._settings.input.max_megapixels,
        )
        if (header.sop_class_uid, header.sop_instance_uid) != asked:
            raise Refused(Reason.UID_MISMATCH, "UIDs differ between command and dataset")


def digests(path: Path) -> tuple[str, str]:
    """SHA-256 of a Part 10 file, and of its dataset without the file meta information."""
    whole, content = hashlib.sha256(), hashlib.sha256()
    with path.open("rb") as file:
        start = dataset_offset(file)
        file.seek(0)
        whole.update(file.read(start))
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            content.update(chunk)
    return whole.hexdigest(), content.hexdigest()


def _shown(uid: str) -> str:
    """A UID that may be invalid, fit to be shown: printable, 64 characters at most."""
    return escape(uid).encode("ascii", "backslashreplace").decode("ascii")[:64]
