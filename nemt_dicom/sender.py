"""Brings outputs to a destination: by C-STORE to a DICOM node, or as files into a folder.

What is sent are the stored bytes as they are. PS3.4 annex B (Storage Service Class), PS3.7 section
9.1.1 (C-STORE).
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from pydicom import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association

from nemt_dicom.config import DeliverySettings, DicomDestination, FolderDestination
from nemt_dicom.header import valid_uid
from nemt_dicom.log import escape
from nemt_dicom.records import StoredOutput
from nemt_dicom.spool import Fs

WARNINGS = frozenset({0xB000, 0xB006, 0xB007})
"""Coercion, elements discarded, dataset does not match SOP class: stored all the same."""


class Answer(Enum):
    """What an attempt came to."""

    SENT = auto()
    LATER = auto()
    """Refused for now, or no answer: this output again later, after others."""
    UNREACHABLE = auto()
    """No connection: the destination again later, nothing is held against the output."""
    REJECTED = auto()
    """Resending it unchanged does not help."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer of a destination. `status` is its DIMSE status as `0x0000`, where there is one."""

    answer: Answer
    status: str | None = None
    detail: str | None = None


class Sender(Protocol):
    """Brings outputs to one destination."""

    def send(self, output: StoredOutput, path: Path) -> Outcome:
        """Sends the file at `path` as it is. Raises nothing that a destination can cause."""

    def idle(self) -> None:
        """Called while there is nothing to send."""

    def close(self) -> None:
        """Ends what is open."""


def outcome_of(status: Dataset) -> Outcome:
    """What a C-STORE response means (PS3.4 table B.2-1). Without a status: there was none."""
    code = status.get("Status")
    if code is None:
        return Outcome(answer=Answer.LATER, detail="no answer")
    shown = f"0x{code:04X}"
    if code == 0x0000:
        return Outcome(answer=Answer.SENT, status=shown)
    comment = escape(str(status.get("ErrorComment") or "")) or None
    if code in WARNINGS:
        return Outcome(answer=Answer.SENT, status=shown, detail=comment or "with a warning")
    if 0xA700 <= code <= 0xA7FF:
        return Outcome(answer=Answer.LATER, status=shown, detail=comment or "out of resources")
    return Outcome(answer=Answer.REJECTED, status=shown, detail=comment or "rejected")


class DicomSender:
    """C-STORE to a DICOM node over one association that is kept open while there is work."""

    def __init__(
        self,
        destination: DicomDestination,
        settings: DeliverySettings,
        syntaxes: Callable[[], list[tuple[str, str]]],
    ) -> None:
        """`syntaxes` gives SOP class and transfer syntax of all that waits to be sent."""
        self._destination = destination
        self._settings = settings
        self._syntaxes = syntaxes
        self._association: Association | None = None
        self._last_used = 0.0

    def send(self, output: StoredOutput, path: Path) -> Outcome:
        wanted = (output.sop_class_uid, output.transfer_syntax_uid)
        association = self._reuse(wanted) or self._open(wanted)
        if association is None:
            return Outcome(answer=Answer.UNREACHABLE, detail="no connection")
        if not association.is_established:
            self.close()
            return _not_established(association)
        if wanted not in _accepted(association):
            return _no_context()
        outcome = self._store(association, path)
        self._last_used = time.monotonic()
        if not association.is_established:
            self._association = None
        return outcome

    def idle(self) -> None:
        if time.monotonic() - self._last_used > self._settings.idle_close_s:
            self.close()

    def close(self) -> None:
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _reuse(self, wanted: tuple[str, str]) -> Association | None:
        association = self._association
        if association is None or not association.is_established:
            return None
        if wanted in _proposed(association):
            return association
        self.close()
        return None

    def _open(self, wanted: tuple[str, str]) -> Association | None:
        ae = AE(ae_title=self._destination.calling_ae_title)
        ae.connection_timeout = self._settings.connect_timeout_s
        ae.acse_timeout = ae.dimse_timeout = self._settings.dimse_timeout_s
        ae.network_timeout = None  # the association is closed by `idle`
        pairs = [wanted, *(pair for pair in self._syntaxes() if pair != wanted)]
        for sop_class, syntax in pairs[:128]:  # no more contexts fit (PS3.8 section 9.3.2.2)
            ae.add_requested_context(sop_class, syntax)
        to = self._destination
        try:
            self._association = ae.associate(
                to.host,
                to.port,
                ae_title=to.ae_title,
                evt_handlers=[(evt.EVT_CONN_OPEN, _send_at_once)],
            )
        except (OSError, RuntimeError):  # the name of the host cannot be resolved
            self._association = None
        return self._association

    @staticmethod
    def _store(association: Association, path: Path) -> Outcome:
        try:
            return outcome_of(association.send_c_store(path))
        except RuntimeError:  # the peer closed the association before the request went out
            return Outcome(answer=Answer.LATER, detail="no answer")
        except (AttributeError, ValueError):  # the file's own header does not name what it is
            return Outcome(answer=Answer.REJECTED, detail="cannot be sent")


def _send_at_once(event: evt.Event) -> None:
    """Small messages are not held back, and a peer that stalls does not hold us for ever."""
    connection = event.assoc.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(event.assoc.dimse_timeout)


def _proposed(association: Association) -> set[tuple[str, str]]:
    contexts = association.requestor.requested_contexts
    return {(str(item.abstract_syntax), str(item.transfer_syntax[0])) for item in contexts}


def _accepted(association: Association) -> set[tuple[str, str]]:
    contexts = association.accepted_contexts
    return {(str(item.abstract_syntax), str(item.transfer_syntax[0])) for item in contexts}


def _no_context() -> Outcome:
    return Outcome(answer=Answer.REJECTED, detail="no presentation context for its transfer syntax")


def _not_established(association: Association) -> Outcome:
    if association.is_rejected:
        reason = getattr(association.acceptor.primitive, "reason_str", "no reason given")
        return Outcome(answer=Answer.UNREACHABLE, detail=f"association rejected: {reason}")
    if association.rejected_contexts and not association.accepted_contexts:
        return _no_context()
    return Outcome(answer=Answer.UNREACHABLE, detail="no connection")


class FolderSender:
    """Writes `<StudyInstanceUID>/<SOPInstanceUID>.dcm`; a file with that ending is complete."""

    def __init__(self, destination: FolderDestination, fs: Fs | None = None) -> None:
        self._root = destination.path
        self._fs = fs or Fs()

    def send(self, output: StoredOutput, path: Path) -> Outcome:
        uids = (output.study_instance_uid, output.sop_instance_uid)
        if not all(valid_uid(uid) for uid in uids):  # it would be part of a path
            return Outcome(answer=Answer.REJECTED, detail="invalid UID")
        folder, name = self._root / uids[0], uids[1]
        temporary = folder / f".{name}.part"
        try:
            if not folder.is_dir():
                self._root.mkdir(parents=True, exist_ok=True)
                self._fs.mkdir(folder, 0o777)
                self._fs.fsync(self._root)
            self._fs.unlink(temporary)
            self._fs.write(temporary, path.read_bytes())
            self._fs.fsync(temporary)
            self._fs.rename(temporary, folder / f"{name}.dcm")
            self._fs.fsync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._fs.unlink(temporary)
            reason = os.strerror(error.errno) if error.errno else "cannot be written"
            return Outcome(answer=Answer.UNREACHABLE, detail=reason)
        return Outcome(answer=Answer.SENT)

    def idle(self) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        """Nothing is kept open."""


def make_sender(
    destination: DicomDestination | FolderDestination,
    settings: DeliverySettings,
    syntaxes: Callable[[], list[tuple[str, str]]],
) -> Sender:
    """The sender for a destination's kind."""
    if isinstance(destination, FolderDestination):
        return FolderSender(destination)
    return DicomSender(destination, settings, syntaxes)


def configure_libraries() -> None:
    """Settings of pynetdicom that hold for the whole process: files are sent as they are."""
    _config.STORE_SEND_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # every failure is logged above
