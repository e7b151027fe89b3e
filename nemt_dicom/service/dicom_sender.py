"""Brings outputs to a DICOM node by C-STORE. The stored bytes are sent as they are.

PS3.4 annex B (Storage Service Class), PS3.7 section 9.1.1 (C-STORE).
"""

import socket
import time
from collections.abc import Callable
from io import BytesIO

from pynetdicom import AE, evt
from pynetdicom.association import Association

from nemt_dicom.config import DeliverySettings, DicomDestination
from nemt_dicom.errors import Refused
from nemt_dicom.intake.header import dataset_offset
from nemt_dicom.service.pynetdicom_patches import limit_sending, send_dataset
from nemt_dicom.service.sender import Answer, Outcome, outcome_of, reason_of
from nemt_dicom.state.records import Output


class DicomSender:
    """C-STORE to a DICOM node over one association that is kept open while there is work."""

    def __init__(
        self,
        destination: DicomDestination,
        settings: DeliverySettings,
        syntaxes: Callable[[], list[tuple[str, str]]],
    ) -> None:
        """`syntaxes` gives SOP class and transfer syntax of all outputs that wait."""
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
            return Outcome(answer=Answer.UNREACHABLE, detail=reason_of(error))
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
        """Opens an association. Raises `OSError` or `UnicodeError` if no connection can begin."""
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
