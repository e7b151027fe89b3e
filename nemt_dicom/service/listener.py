"""The receiving process: associations, C-ECHO, C-STORE. Neither torch nor a pixel decoder.

An instance is acknowledged only when its bytes are in the spool and its row in the database, both
on the disk. PS3.4 annex B (Storage Service Class), PS3.7 section 9.1.1 (C-STORE).
"""

import errno
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import pydicom.config
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from nemt_dicom.config import ListenerSettings, Settings
from nemt_dicom.errors import Reason, Refused, StateError
from nemt_dicom.intake.admission import SOP_CLASSES
from nemt_dicom.log import describe_error, instance_name
from nemt_dicom.service.child import Life
from nemt_dicom.service.incoming import IncomingFile, PduReader
from nemt_dicom.service.receiver import Receiver, Request
from nemt_dicom.state.records import Receipt
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store

LOGGER = logging.getLogger(__name__)

TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
)
"""Offered for each storage SOP class. Not deflated and not big-endian."""

VERIFICATION_TRANSFER_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)

# C-STORE status codes: PS3.4 table B.2-1, PS3.7 section 9.1.1.1.9.
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
PROCESSING_FAILURE = 0xA701
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

REFUSAL_STATUS = {
    Reason.INVALID_UID: DOES_NOT_MATCH,
    Reason.UID_MISMATCH: DOES_NOT_MATCH,
    Reason.MISSING_ATTRIBUTE: DOES_NOT_MATCH,
    Reason.NO_PIXEL_DATA: DOES_NOT_MATCH,
    Reason.UNPARSABLE: CANNOT_UNDERSTAND,
    Reason.INVALID_SIZE: CANNOT_UNDERSTAND,
    Reason.TOO_LARGE: CANNOT_UNDERSTAND,
}
"""How each reason that the bounded look at the header can give is answered on the wire."""

STOP_PATIENCE = 5.0  # seconds for C-STORE operations under way to end


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Answers small messages at once, and lets senders queue for a connection."""

    request_queue_size = 128
    max_per_address = 0

    def __init__(self, *values: Any, **named: Any) -> None:
        # The address of each connection. One that is no longer used is closed or forgotten.
        self._connections: WeakKeyDictionary[socket.socket, str] = WeakKeyDictionary()
        super().__init__(*values, **named)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(self.ae.network_timeout)  # of a peer that stops inside a message
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Takes a connection only where its address has not used up its places."""
        address = client_address[0]
        taken = sum(
            peer == address and connection.fileno() != -1
            for connection, peer in list(self._connections.items())
        )
        has_place = bool(taken < self.max_per_address)
        if has_place:
            self._connections[request] = address
        else:
            LOGGER.warning("closed a connection: there are %d from %s already", taken, address)
        return has_place

    def stop_accepting(self) -> None:
        socketserver.TCPServer.shutdown(self)
        self.server_close()


class Listener:
    """The storage SCP. `start` binds the port, `stop` ends what is under way and closes it."""

    def __init__(self, settings: Settings, receiver: Receiver) -> None:
        self._settings = settings.listener
        self._receiver = receiver
        self._under_way = 0
        self._lock = threading.Lock()
        self._ae = _application_entity(self._settings)
        self._server: _Server | None = None
        # Files of complete datasets that wait for `_on_store`, by association, oldest first.
        self._waiting: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

    def start(self) -> None:
        """Raises `StateError` where the address cannot be bound."""
        handlers = [
            (evt.EVT_CONN_OPEN, self._on_open),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_REJECTED, _on_rejected),
            (evt.EVT_DATA_RECV, self._on_data),
            (evt.EVT_DIMSE_RECV, self._on_message),
            (evt.EVT_CONN_CLOSE, self._on_close),
        ]
        address = (self._settings.host, self._settings.port)
        try:
            server = self._ae.make_server(address, server_class=_Server, evt_handlers=handlers)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            taken = error.errno == errno.EADDRINUSE
            hint = "; choose another port or stop the program that uses it" if taken else ""
            raise StateError(
                f"cannot listen on {address[0]} port {address[1]}: {reason}{hint}"
            ) from error
        server.max_per_address = self._settings.max_associations_per_address
        self._server = server
        accept = partial(server.serve_forever, poll_interval=0.2)
        threading.Thread(target=accept, name="AcceptorServer", daemon=True).start()

    def stop(self) -> None:
        """Takes no new connection, lets C-STORE operations end, then closes all associations."""
        if self._server is not None:
            self._server.stop_accepting()
        deadline = time.monotonic() + STOP_PATIENCE
        while self._under_way and time.monotonic() < deadline:
            time.sleep(0.02)
        for association in self._ae.active_associations:
            association.abort()

    def _on_open(self, event: evt.Event) -> None:
        """Puts our own reading in the place of pynetdicom's, which trusts every peer."""
        connection, dimse = event.assoc.dul.socket, event.assoc.dimse
        connection.recv = PduReader(connection.socket, self._settings.pdu_timeout_s)
        dimse.receive_primitive = partial(_receive, event.assoc, dimse.receive_primitive)

    def _on_store(self, event: evt.Event) -> Dataset | int:
        """Handles a C-STORE request; returns its status (PS3.7 section 9.1.1.1.9)."""
        name = instance_name(str(event.request.AffectedSOPInstanceUID))
        with self._lock:
            self._under_way += 1
            waiting = self._waiting.get(event.assoc)
            if waiting:  # not where the connection has closed meanwhile
                waiting.pop(0)
        try:
            receipt = self._keep(event)
        except Refused as refusal:
            LOGGER.warning("refused instance %s: %s", name, refusal)
            return _failure(REFUSAL_STATUS[refusal.reason], str(refusal))
        except OSError as error:
            LOGGER.error(
                "not stored instance %s: %s", name, error.strerror or describe_error(error)
            )
            return _failure(OUT_OF_RESOURCES, "out of resources, send again later")
        except Exception as error:  # noqa: BLE001 (whatever it is, nothing was acknowledged)
            LOGGER.error("not stored instance %s: %s", name, describe_error(error))
            return _failure(PROCESSING_FAILURE, "internal error, send again later")
        finally:
            with self._lock:
                self._under_way -= 1
        if receipt is Receipt.CONFLICT:
            LOGGER.warning("received instance %s: its UID came with other content; held", name)
        else:
            LOGGER.info("received instance %s: %s", name, receipt)
        return SUCCESS  # the only place where an instance is acknowledged

    def _keep(self, event: evt.Event) -> Receipt:
        if event.dataset_path is None:
            raise Refused(Reason.UNPARSABLE, "the C-STORE request has no dataset")
        if (error := event.request._dataset_file.error) is not None:
            raise error
        request = Request(
            sop_class_uid=str(event.request.AffectedSOPClassUID),
            sop_instance_uid=str(event.request.AffectedSOPInstanceUID),
            abstract_syntax_uid=str(event.context.abstract_syntax),
            transfer_syntax_uid=str(event.context.transfer_syntax),
        )
        return self._receiver.keep(event.dataset_path, request)

    def _on_data(self, event: evt.Event) -> None:
        """Aborts an association whose dataset grows beyond `max_object_mb`."""
        received = _partial_file(event.assoc)
        if received is not None and received.tell() > self._settings.max_object_mb * 1_000_000:
            LOGGER.warning("aborted an association: a dataset is over the limit")
            event.assoc.abort(block=False)  # this is the thread that has to send it

    def _on_message(self, event: evt.Event) -> None:
        if isinstance(event.message, C_STORE_RQ):
            with self._lock:
                self._waiting.setdefault(event.assoc, []).append(event.message._data_set_file)

    def _on_close(self, event: evt.Event) -> None:
        """Removes what nobody will handle any more: files, and a thread that waits for a request.

        pynetdicom leaves both, and the thread holds a place for `acse_timeout_s`.
        """
        if event.assoc.requestor.primitive is None:
            event.assoc.dul.to_user_queue.put(None)
        with self._lock:
            files = [*self._waiting.pop(event.assoc, []), _partial_file(event.assoc)]
        for file in files:
            if file is not None:
                file.close()


def _application_entity(settings: ListenerSettings) -> AE:
    ae = AE(ae_title=settings.ae_title)
    ae.require_called_aet = True
    ae.require_calling_aet = list(settings.allowed_calling_ae_titles)
    ae.maximum_associations = settings.max_associations
    ae.maximum_pdu_size = settings.max_pdu
    ae.acse_timeout = settings.acse_timeout_s
    ae.dimse_timeout = settings.dimse_timeout_s
    ae.network_timeout = settings.network_timeout_s
    for sop_class in SOP_CLASSES:
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    ae.add_supported_context(Verification, list(VERIFICATION_TRANSFER_SYNTAXES))
    return ae


def _on_rejected(event: evt.Event) -> None:
    requestor = event.assoc.requestor
    asked = requestor.primitive
    LOGGER.warning(
        "rejected an association: calling AE title %r, called %r, from %s",
        asked.calling_ae_title,
        asked.called_ae_title,
        requestor.address,
    )


def _receive(association: Any, receive: Callable[[Any], None], primitive: Any) -> None:
    """Takes a part of a message. What no association should bring ends this one, nothing else."""
    try:
        receive(primitive)
    except Exception as error:  # noqa: BLE001 (whatever a peer can send)
        LOGGER.warning("aborted an association: %s", describe_error(error))
        association.abort(block=False)  # this is the thread that has to send it


def _partial_file(association: Any) -> Any:
    """The file of the dataset that is being received, or None."""
    message = association.dimse.message
    return None if message is None else message._data_set_file


def _failure(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]
    return answer


def configure_libraries(spool: Spool, min_free: int) -> None:
    """Settings of pynetdicom and pydicom that hold for the whole process.

    Datasets go straight to files in the spool, so that memory does not grow with them, but only
    where `min_free` bytes are free. Invalid UIDs reach our own check instead of ending the
    association.
    """
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda _uid: (True, "")
    dimse_messages.NamedTemporaryFile = lambda **_how: IncomingFile(spool, min_free=min_free)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE


def run_listener(settings: Settings, life: Life) -> None:
    """The listener process, until it is told to stop."""
    spool = Spool(settings.state.dir, process="listener")
    spool.prepare()
    store = Store(settings.state.dir)
    configure_libraries(spool, settings.listener.min_free_mb * 1_000_000)
    listener = Listener(settings, Receiver(settings, spool, store))
    listener.start()
    life.ready({})
    life.stop.wait()
    listener.stop()
    store.close()
