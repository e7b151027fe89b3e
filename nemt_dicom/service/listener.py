"""The receiving process: associations, C-ECHO, C-STORE. Neither torch nor a pixel decoder.

An instance is acknowledged only when its bytes are in the spool and its row in the database, both
on the disk. PS3.4 annex B (Storage Service Class), PS3.7 section 9.1.1 (C-STORE).
"""

import errno
import logging
import os
import threading
import time
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
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from nemt_dicom.config import ListenerSettings, Settings
from nemt_dicom.errors import Reason, Refused, StateError
from nemt_dicom.intake.admission import SOP_CLASSES
from nemt_dicom.log import describe_error, instance_name
from nemt_dicom.service.child import Life
from nemt_dicom.service.incoming import IncomingFile
from nemt_dicom.service.pynetdicom_patches import (
    AssociationServer,
    configure_receiving,
    file_of_message,
    file_of_request,
    forget_connection,
    guard_reading,
    partial_file,
)
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


class Listener:
    """The storage SCP. `start` binds the port, `stop` ends what is under way and closes it."""

    def __init__(self, settings: Settings, receiver: Receiver) -> None:
        self._settings = settings.listener
        self._receiver = receiver
        self._under_way = 0
        self._lock = threading.Lock()
        self._ae = _application_entity(self._settings)
        self._server: AssociationServer | None = None
        # Files of complete datasets that wait for `_on_store`, by association, oldest first.
        self._waiting: WeakKeyDictionary[Any, list[IncomingFile]] = WeakKeyDictionary()

    def start(self) -> None:
        """Binds the port and accepts. Raises `StateError` if the address cannot be bound."""
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
            server = self._ae.make_server(
                address, server_class=AssociationServer, evt_handlers=handlers
            )
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
        guard_reading(event.assoc, self._settings.pdu_timeout_s)

    def _on_store(self, event: evt.Event) -> Dataset | int:
        """Handles a C-STORE request; returns its status (PS3.7 section 9.1.1.1.9)."""
        name = instance_name(str(event.request.AffectedSOPInstanceUID))
        with self._lock:
            self._under_way += 1
            waiting = self._waiting.get(event.assoc)
            if waiting:  # none if the connection has closed meanwhile
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
        if (error := file_of_request(event.request).error) is not None:
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
        received = partial_file(event.assoc)
        if received is not None and received.tell() > self._settings.max_object_mb * 1_000_000:
            LOGGER.warning("aborted an association: a dataset is over the limit")
            event.assoc.abort(block=False)  # this is the thread that has to send it

    def _on_message(self, event: evt.Event) -> None:
        file = file_of_message(event.message)
        if file is not None:
            with self._lock:
                self._waiting.setdefault(event.assoc, []).append(file)

    def _on_close(self, event: evt.Event) -> None:
        """Removes the files that nobody will handle any more."""
        forget_connection(event.assoc)
        with self._lock:
            files = self._waiting.pop(event.assoc, [])
        for file in files:
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


def _failure(status: int, comment: str) -> Dataset:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]
    return answer


def configure_libraries(spool: Spool, min_free: int) -> None:
    """Settings of pynetdicom and pydicom that hold for the whole process.

    Datasets go straight to files in the spool, but only if `min_free` bytes are free.
    """
    configure_receiving(lambda: IncomingFile(spool, min_free=min_free))
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE


def run_listener(settings: Settings, life: Life) -> None:
    """Runs the listener process until it is told to stop.

    Raises `StateError` if the database cannot be used or the port cannot be bound.
    """
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
