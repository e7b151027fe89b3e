"""Every place where the service reaches into pynetdicom 3.0, with the failure that it mends.

No other file of nemt_dicom uses a private name of pynetdicom, or `dul` and `dimse`, the inside of
an association (tests/test_architecture.py). The failures were seen with pynetdicom 3.0.4. For each
patch tests/service/test_pynetdicom_patches.py shows the failure without the patch, as an expected
failure: if a later release mends it, that test fails, and the patch can go.

| patch | without it |
| --- | --- |
| `configure_receiving` | datasets are held in memory; a full disk or an invalid UID in a command ends the association without an answer |
| `configure_sending` | each failed association is an error in the log, with names of the peer |
| `AssociationServer` | no connection waits in a queue; small messages are delayed; a connection has no time limit; one address can take all places; `shutdown` raises ValueError for a server of `AE.make_server` |
| `guard_reading` | a peer that drips bytes, or announces 4 GB, holds a place for ever; a message that no presentation context allows ends the thread with a traceback |
| `forget_connection` | a connection that ends early leaves its thread until a time limit, and its file for ever |
| `limit_sending` | a peer that stalls while we send holds the thread for ever |
| `send_dataset` | bytes can only be sent as a file that is read again, or as a Dataset that is encoded again |
"""  # noqa: E501 (a table)

import logging
import socket
import socketserver
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydicom import Dataset
from pynetdicom import _config, dimse_messages
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import ThreadedAssociationServer

from nemt_dicom.log import describe_error
from nemt_dicom.service.incoming import IncomingFile, PduReader

LOGGER = logging.getLogger(__name__)


def configure_receiving(make_file: Callable[[], IncomingFile]) -> None:
    """Settings of the whole process for a storage SCP.

    Each dataset goes straight into a file of `make_file`, so that memory does not grow with it and
    a full disk is answered. Invalid UIDs reach our own check instead of ending the association.
    """
    _config.STORE_RECV_CHUNKED_DATASET = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.VALIDATORS["UI"] = lambda _uid: (True, "")
    dimse_messages.NamedTemporaryFile = lambda **_how: make_file()


def configure_sending() -> None:
    """Settings of the whole process for a storage SCU. Each failure is in an `Outcome` already."""
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


class AssociationServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Answers small messages at once, and lets senders queue for a connection.

    max_per_address: connections that one address may hold.
    """

    request_queue_size = 128
    max_per_address = 0

    def __init__(self, *values: Any, **named: Any) -> None:
        # The address of each connection. One that is no longer used is closed or forgotten.
        self._connections: WeakKeyDictionary[socket.socket, str] = WeakKeyDictionary()
        super().__init__(*values, **named)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # A peer that stops inside a message must not hold its thread for ever.
        _limit(connection, self.ae.network_timeout)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Takes a connection only if its address has not used up its places."""
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
        """Closes the port; associations go on.

        pynetdicom's own `shutdown` takes the server off a list of its AE, where this one is not.
        """
        socketserver.TCPServer.shutdown(self)
        self.server_close()


def guard_reading(association: Association, pdu_timeout_s: float) -> None:
    """Puts our own reading in the place of pynetdicom's, which trusts every peer.

    Call it when the connection opens. A PDU must be whole within `pdu_timeout_s` seconds. What no
    association should bring ends this one and nothing else.
    """
    connection, dimse = association.dul.socket, association.dimse
    connection.recv = PduReader(connection.socket, pdu_timeout_s)
    dimse.receive_primitive = partial(_receive, association, dimse.receive_primitive)


def _receive(association: Association, receive: Callable[[Any], None], primitive: Any) -> None:
    try:
        receive(primitive)
    except Exception as error:  # noqa: BLE001 (whatever a peer can send)
        LOGGER.warning("aborted an association: %s", describe_error(error))
        association.abort(block=False)  # this is the thread that has to send it


def limit_sending(association: Association) -> None:
    """Small messages are not held back, and a peer that stalls does not hold us for ever.

    Call it when the connection opens. The limit is the association's `dimse_timeout`.
    """
    _limit(association.dul.socket.socket, association.dimse_timeout)


def _limit(connection: socket.socket, seconds: float | None) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(seconds)


def file_of_request(request: C_STORE) -> IncomingFile:
    """The file that holds the dataset of a C-STORE request."""
    return cast(IncomingFile, request._dataset_file)


def file_of_message(message: Any) -> IncomingFile | None:
    """The file of a complete message, None if it is no C-STORE request."""
    if isinstance(message, C_STORE_RQ):
        return cast("IncomingFile | None", message._data_set_file)
    return None


def partial_file(association: Association) -> IncomingFile | None:
    """The file of the dataset that is being received, or None."""
    message = association.dimse.message
    return None if message is None else cast("IncomingFile | None", message._data_set_file)


def forget_connection(association: Association) -> None:
    """Ends what pynetdicom leaves when a connection closes: file, and thread without a request.

    The thread would wait, and hold a place, for `acse_timeout`.
    """
    if association.requestor.primitive is None:
        association.dul.to_user_queue.put(None)
    file = partial_file(association)
    if file is not None:
        file.close()


def send_dataset(
    association: Association,
    dataset: bytes,
    *,
    context_id: int,
    sop_class_uid: str,
    sop_instance_uid: str,
) -> Dataset:
    """C-STORE of an encoded dataset, byte for byte (PS3.7 section 9.1.1); returns the response.

    The response is an empty Dataset if there was none. Raises `RuntimeError` if the association
    has ended. These are the last lines of pynetdicom's `Association.send_c_store`.
    """
    if not association.is_established:
        raise RuntimeError("the association has ended")
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2  # low
    request.AffectedSOPClassUID = sop_class_uid
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.DataSet = BytesIO(dataset)
    association._reactor_checkpoint.clear()  # the reactor must not take the response
    while not association._is_paused:
        time.sleep(0.0001)
    try:
        association.dimse.send_msg(request, context_id)
        _, response = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    if response is None:
        association._handle_no_response()
        return Dataset()
    status: Dataset = association._check_received_status(response)
    return status
