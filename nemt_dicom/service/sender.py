"""Brings outputs to a destination: by C-STORE to a DICOM node, or as files into a folder.

What is sent are the stored bytes as they are. PS3.4 annex B (Storage Service Class), PS3.7 section
9.1.1 (C-STORE).
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from io import BytesIO
from typing import Protocol

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association

from nemt_dicom.config import DeliverySettings, DicomDestination, FolderDestination, Settings
from nemt_dicom.errors import Refused
from nemt_dicom.files import Fs, write_whole
from nemt_dicom.intake.header import dataset_offset
from nemt_dicom.intake.uid import valid_uid
from nemt_dicom.log import escape
from nemt_dicom.service.pynetdicom_patches import limit_sending, send_dataset
from nemt_dicom.state.records import Output

# PS3.4 table B.2-1 and PS3.7 annex C. What is in none of these says nothing of the object: the
# destination is out of resources, not configured for us or at fault itself.
WARNINGS = frozenset({0x0001, 0x0107, 0x0116})
"""Stored all the same, as with every status 0xBxxx."""
ALREADY_THERE = 0x0111
"""Duplicate SOP Instance. Ours have UIDs made from their content: it is the same object."""
FAULTS_OF_THE_OBJECT = frozenset({0x0105, 0x0106, 0x0115, 0x0117, 0x0119, 0x0120, 0x0121})
"""An attribute or value is missing or wrong, or the SOP Instance is; as are 0xA9xx and 0xCxxx."""
REFUSALS = {
    0x0110: "processing failure",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0213: "resource limitation",
}


class Answer(Enum):
    """What an attempt came to."""

    SENT = auto()
    LATER = auto()
    """Refused for now, or no answer: this output again later, after others."""
    UNREACHABLE = auto()
    """No connection: the destination again later, nothing is held against the output."""
    REJECTED = auto()
    """Says the destination of this output: resending it unchanged does not help."""
    LOST = auto()
    """There is nothing to send: our own bytes of it are missing or damaged."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer of a destination. `status` is its DIMSE status as `0x0000`, where there is one.

    `detail` is in our own words. `comment` is in the peer's, which may be of the patient: it is
    for the database and never for the log.
    """

    answer: Answer
    status: str | None = None
    detail: str | None = None
    comment: str | None = None


class Sender(Protocol):
    """Brings outputs to one destination."""

    def send(self, output: Output, data: bytes) -> Outcome:
        """Sends `data`, the bytes of the output, as they are. Raises nothing that a destination
        can cause.
        """

    def idle(self) -> None:
        """Called while there is nothing to send."""

    def close(self) -> None:
        """Ends what is open."""


def outcome_of(status: Dataset) -> Outcome:
    """What a C-STORE response means. Without a status: there was none."""
    code = status.get("Status")
    if code is None:
        return Outcome(answer=Answer.LATER, detail="no answer")
    answer, detail = _meaning(code)
    comment = escape(str(status.get("ErrorComment") or "")) or None
    return Outcome(answer=answer, status=f"0x{code:04X}", detail=detail, comment=comment)


def _meaning(code: int) -> tuple[Answer, str | None]:
    if code == 0x0000:
        return Answer.SENT, None
    if code == ALREADY_THERE:
        return Answer.SENT, "it was there already"
    if code in WARNINGS or 0xB000 <= code <= 0xBFFF:
        return Answer.SENT, "with a warning"
    if 0xA900 <= code <= 0xA9FF:
        return Answer.REJECTED, "dataset does not match its SOP class"
    if code in FAULTS_OF_THE_OBJECT or 0xC000 <= code <= 0xCFFF:
        return Answer.REJECTED, "cannot understand the object"
    out_of_resources = 0xA700 <= code <= 0xA7FF
    return Answer.LATER, "out of resources" if out_of_resources else REFUSALS.get(code, "refused")


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
        self._connected = False
        self._last_used = 0.0

    def send(self, output: Output, data: bytes) -> Outcome:
        wanted = (output.sop_class_uid, output.transfer_syntax_uid)
        try:
            association = self._reuse(wanted) or self._open(wanted)
        except (socket.gaierror, UnicodeError):
            detail = f"the host name {self._destination.host} cannot be resolved"
            return Outcome(answer=Answer.UNREACHABLE, detail=detail)
        except OSError as error:
            return Outcome(answer=Answer.UNREACHABLE, detail=_reason(error))
        if not association.is_established:
            self.close()
            return self._not_established(association)
        context_id = _accepted(association).get(wanted)
        if context_id is None:
            return _no_context()
        outcome = _store(association, context_id, output, data)
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

    def _open(self, wanted: tuple[str, str]) -> Association:
        """Raises `OSError` or `UnicodeError` where no connection can even be begun."""
        ae = AE(ae_title=self._destination.calling_ae_title)
        ae.connection_timeout = self._settings.connect_timeout_s
        ae.acse_timeout = ae.dimse_timeout = self._settings.dimse_timeout_s
        ae.network_timeout = None  # the association is closed by `idle`
        pairs = [wanted, *(pair for pair in self._syntaxes() if pair != wanted)]
        for sop_class, syntax in pairs[:128]:  # no more contexts fit (PS3.8 section 9.3.2.2)
            ae.add_requested_context(sop_class, syntax)
        to = self._destination
        self._connected = False
        self._association = ae.associate(
            to.host,
            to.port,
            ae_title=to.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, self._on_open)],
        )
        return self._association

    def _on_open(self, event: evt.Event) -> None:
        self._connected = True
        limit_sending(event.assoc)

    def _not_established(self, association: Association) -> Outcome:
        to = self._destination
        if association.is_rejected:
            reason = getattr(association.acceptor.primitive, "reason_str", "no reason given")
            titles = f"called {to.ae_title}, calling {to.calling_ae_title}"
            detail = f"association rejected: {reason} ({titles})"
        elif association.rejected_contexts and not association.accepted_contexts:
            return _no_context()
        elif self._connected:
            detail = f"{to.host} port {to.port} takes the connection but no association"
        else:
            detail = f"no connection to {to.host} port {to.port}"
        return Outcome(answer=Answer.UNREACHABLE, detail=detail)


def _store(association: Association, context_id: int, output: Output, data: bytes) -> Outcome:
    """Sends the dataset in `data` as it is: what follows the file meta information."""
    try:
        dataset = data[dataset_offset(BytesIO(data)) :]
        status = send_dataset(
            association,
            dataset,
            context_id=context_id,
            sop_class_uid=output.sop_class_uid,
            sop_instance_uid=output.sop_instance_uid,
        )
    except RuntimeError:  # the peer closed the association before the request went out
        return Outcome(answer=Answer.LATER, detail="no answer")
    except (Refused, ValueError):  # it has no file meta information, or a UID is not one
        return Outcome(answer=Answer.REJECTED, detail="cannot be sent")
    return outcome_of(status)


def _proposed(association: Association) -> set[tuple[str, str]]:
    contexts = association.requestor.requested_contexts
    return {(str(item.abstract_syntax), str(item.transfer_syntax[0])) for item in contexts}


def _accepted(association: Association) -> dict[tuple[str, str], int]:
    """Ids of the accepted presentation contexts, by SOP class and transfer syntax."""
    contexts = association.accepted_contexts
    return {
        (str(item.abstract_syntax), str(item.transfer_syntax[0])): item.context_id
        for item in contexts
    }


def _no_context() -> Outcome:
    """The destination is not, or not yet, configured for this kind of output."""
    detail = "no presentation context for its SOP class and transfer syntax"
    return Outcome(answer=Answer.LATER, detail=detail)


def _reason(error: OSError) -> str:
    """An `OSError` without the names that its text holds."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


class FolderSender:
    """Writes `<StudyInstanceUID>/<SOPInstanceUID>.dcm`; a file with that ending is complete."""

    def __init__(
        self, destination: FolderDestination, *, make: bool = False, fs: Fs | None = None
    ) -> None:
        """`make`: the folder is made where it is missing. Otherwise it may be a share that is not
        mounted, and what was written in its place would never arrive.
        """
        self._root = destination.path
        self._make = make
        self._fs = fs or Fs()

    def send(self, output: Output, data: bytes) -> Outcome:
        # They become part of a path.
        if not (valid_uid(output.study_instance_uid) and valid_uid(output.sop_instance_uid)):
            return Outcome(answer=Answer.REJECTED, detail="invalid UID")
        try:
            fault = self._fault()
        except OSError as error:
            fault = _reason(error)
        if fault is not None:
            return Outcome(answer=Answer.UNREACHABLE, detail=f"folder {self._root} {fault}")
        folder = self._root / output.study_instance_uid
        try:
            if not folder.is_dir():
                self._fs.mkdir(folder, 0o777)
                self._fs.fsync(self._root)
            write_whole(folder / f"{output.sop_instance_uid}.dcm", data, fs=self._fs)
        except OSError as error:  # of the disk or of this output: the others are not held up
            return Outcome(answer=Answer.LATER, detail=_reason(error))
        return Outcome(answer=Answer.SENT)

    def _fault(self) -> str | None:
        """Why nothing at all can be written. Raises `OSError` where that cannot be told."""
        if self._make:
            self._fs.mkdir(self._root)
        if self._root.is_dir():
            return None
        return "is not a folder" if self._root.exists() else "does not exist; is it mounted?"

    def idle(self) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        """Nothing is kept open."""


def make_sender(
    destination: DicomDestination | FolderDestination,
    settings: Settings,
    syntaxes: Callable[[], list[tuple[str, str]]],
) -> Sender:
    """The sender for a destination's kind."""
    if isinstance(destination, FolderDestination):
        return FolderSender(destination, make=destination.path == settings.own_results)
    return DicomSender(destination, settings.delivery, syntaxes)
