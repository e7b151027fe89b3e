"""One received file on its way through check, spool and database. Knows nothing of the network."""

import errno
import hashlib
import logging
import math
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, AllTransferSyntaxes

from nemt_dicom.config import Settings
from nemt_dicom.errors import Reason, Refused
from nemt_dicom.intake.admission import SOP_CLASSES
from nemt_dicom.intake.header import dataset_offset, scan_header
from nemt_dicom.intake.uid import valid_uid
from nemt_dicom.log import escape, instance_name
from nemt_dicom.state.records import Arrival, Receipt, Rejection
from nemt_dicom.state.spool import CHUNK, Spool
from nemt_dicom.state.store import Store

LOGGER = logging.getLogger(__name__)

OWN_WRITERS = frozenset({"1.2.826.0.1.3680043.9.7433.1.1", PYDICOM_IMPLEMENTATION_UID})
"""Implementation Class UIDs of highdicom, which writes our outputs, and of pydicom. What is
received is written by pynetdicom.
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The description of a dataset in its C-STORE request (PS3.7 section 9.1.1).

    sop_class_uid: Affected SOP Class UID of the command.
    sop_instance_uid: Affected SOP Instance UID of the command.
    abstract_syntax_uid: of the presentation context.
    transfer_syntax_uid: of the presentation context.
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

        Raises `Refused` if sending the instance again unchanged cannot help; the refusal is
        recorded then. Raises `OSError` if there is no room.
        """
        if self.too_full():
            raise OSError(errno.ENOSPC, "too little free space in the state folder")
        whole, content = digests(path)
        try:
            _check(path, request, self._settings.input.max_megapixels)
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
        return self._take(path, request, whole, content)

    def take_back(self, blob: Path) -> bool:
        """Takes in a blob that the database does not know, because the database was lost or is an
        older one. Returns whether the blob must stay.

        False: it is no received instance, or the database knows its content. A blob that is damaged
        or cannot be read stays. Raises `OSError` if there is no room for its row.
        """
        try:
            whole, content = digests(blob)
            if whole != blob.name:
                LOGGER.error("a file of the spool is damaged and is left: %s", blob.name[:12])
                return True
            request = _request_of(blob)
            if request is None:
                return False
            _check(blob, request, math.inf)  # the limit may have been another
        except Refused:
            return False
        except OSError as error:
            LOGGER.error("a file of the spool cannot be read and is left: %s", error.strerror)
            return True
        if self._store.knows(request.sop_instance_uid, content):
            return False
        receipt = self._take(blob, request, whole, content)
        name = instance_name(request.sop_instance_uid)
        LOGGER.info("took back instance %s: %s", name, receipt)
        return True

    def too_full(self) -> bool:
        """Whether there is too little free space to receive anything."""
        return self._spool.free_bytes() < self._settings.listener.min_free_mb * 1_000_000

    def _take(self, path: Path, request: Request, whole: str, content: str) -> Receipt:
        received = datetime.fromtimestamp(path.stat().st_mtime, UTC)  # the same when taken back
        arrival = Arrival(
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            content_digest=content,
            blob=self._spool.adopt(path, whole),
            received=received,
        )
        return self._store.receive(arrival)


def _check(path: Path, request: Request, max_megapixels: float) -> None:
    """Raises `Refused` if the file at `path` is no whole instance or not the announced one."""
    announced = (request.sop_class_uid, request.sop_instance_uid)
    if not all(valid_uid(uid) for uid in announced):
        raise Refused(Reason.INVALID_UID, "a UID of the C-STORE command is not valid")
    if request.sop_class_uid != request.abstract_syntax_uid:
        raise Refused(Reason.UID_MISMATCH, "SOP class differs from presentation context")
    syntax = request.transfer_syntax_uid
    header = scan_header(path, transfer_syntax_uid=syntax, max_megapixels=max_megapixels)
    if (header.sop_class_uid, header.sop_instance_uid) != announced:
        raise Refused(Reason.UID_MISMATCH, "UIDs differ between command and dataset")


def _request_of(path: Path) -> Request | None:
    """The C-STORE request of a received file, from its file meta information.

    None if that is unreadable, or if the file is one of our outputs.
    """
    with path.open("rb") as file:
        if dataset_offset(file) > file.seek(0, os.SEEK_END):
            return None
    try:
        meta = read_file_meta_info(path)
        sop_class, syntax = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
        sop_instance = str(meta.MediaStorageSOPInstanceUID)
    except (InvalidDicomError, AttributeError, EOFError, KeyError, ValueError, struct.error):
        return None
    is_output = meta.get("ImplementationClassUID") in OWN_WRITERS
    if is_output or sop_class not in SOP_CLASSES or syntax not in AllTransferSyntaxes:
        return None
    return Request(
        sop_class_uid=sop_class,
        sop_instance_uid=sop_instance,
        abstract_syntax_uid=sop_class,
        transfer_syntax_uid=syntax,
    )


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
