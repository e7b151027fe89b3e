"""What pynetdicom does without our patches: each test is an expected failure.

A test that passes says that pynetdicom has mended it, and that the patch it names can go.
"""

import contextlib
import gc
import logging
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.config import disable_value_validation
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, dimse_messages, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from tests.service.service_kit import begin_raw, encode, radiograph, wait_for

unmended = pytest.mark.xfail(reason="pynetdicom 3.0", raises=AssertionError, strict=True)

Scp = Callable[..., ThreadedAssociationServer]


@pytest.fixture
def scp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scp]:
    """Starts storage SCPs of pynetdicom alone, with the settings that we use."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", True)
    monkeypatch.setattr(_config, "LOG_HANDLER_LEVEL", "none")
    servers = []

    def start(*handlers: tuple[object, ...]) -> ThreadedAssociationServer:
        ae = AE(ae_title="PACS")
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = 30
        ae.add_supported_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
        handlers = [(evt.EVT_C_STORE, lambda _event: 0x0000), *handlers]
        servers.append(ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers))
        return servers[-1]

    yield start
    for server in servers:
        server.ae.shutdown()
        server.server_close()
    servers.clear()
    with warnings.catch_warnings():  # of files that pynetdicom alone leaves open
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextlib.contextmanager
def associated(server: ThreadedAssociationServer) -> Iterator[object]:
    ae = AE()
    ae.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", server.server_address[1], ae_title="PACS")
    try:
        yield association
    finally:
        if association.is_established:
            association.abort()


def closes_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(100) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@unmended
def test_an_impossible_length_is_refused(scp):
    """`guard_reading`"""
    with socket.create_connection(scp().server_address) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
        assert closes_within(connection, 1)


@unmended
def test_a_pdu_that_drips_is_given_up(scp):
    """`guard_reading`"""
    server = scp()
    server.ae.network_timeout = server.ae.acse_timeout = 0.5
    with socket.create_connection(server.server_address) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 1000))
        for _ in range(20):
            connection.sendall(b"x")
            time.sleep(0.1)
        assert closes_within(connection, 0.2)


@unmended
def test_a_context_that_was_not_accepted_raises_nothing(scp, monkeypatch):
    """`guard_reading`"""
    raised: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))
    with associated(scp()) as association:
        association.accepted_contexts[0].context_id = 99
        begin_raw(association, radiograph())
        association._reactor_checkpoint.set()
        wait_for(lambda: raised or not association.is_established, "the end", 10)
    assert raised == []


@unmended
def test_a_full_disk_is_answered(scp, monkeypatch):
    """`configure_receiving`"""

    def full(**_how: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(dimse_messages, "NamedTemporaryFile", full)
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    with associated(scp()) as association:
        association.dimse_timeout = 1
        assert association.send_c_store(radiograph()).get("Status") is not None


@pytest.mark.xfail(reason="pynetdicom 3.0", raises=ValueError, strict=True)
def test_an_invalid_uid_reaches_the_handler():
    """`configure_receiving`: the error ends the association, without an answer."""
    with disable_value_validation():  # pydicom only warns
        C_STORE().AffectedSOPInstanceUID = "1." + "2" * 66


@unmended
def test_a_peer_that_vanishes_leaves_no_file(scp, tmp_path):
    """`forget_connection`"""
    closed = threading.Event()
    server = scp((evt.EVT_CONN_CLOSE, lambda _event: closed.set()))
    with associated(server) as association:
        begin_raw(association, radiograph(size=400), fragments=3)
        wait_for(lambda: list(tmp_path.iterdir()), "the file")
        connection = association.dul.socket.socket
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert closed.wait(10)
    wait_for(lambda: not server.active_associations, "the end of the association")
    assert list(tmp_path.iterdir()) == []


@unmended
def test_a_connection_without_an_association_ends_its_thread(scp):
    """`forget_connection`"""
    closed = threading.Event()
    server = scp((evt.EVT_CONN_CLOSE, lambda _event: closed.set()))
    socket.create_connection(server.server_address).close()
    assert closed.wait(10)
    time.sleep(0.5)
    threads = list(server.active_associations)
    for association in threads:  # so that the next test has no guest
        association.dul.to_user_queue.put(None)
    assert threads == []


@unmended
def test_small_messages_are_not_held_back(scp):
    """`AssociationServer` and `limit_sending`"""
    seen: list[int] = []

    def note(event: evt.Event) -> None:
        connection = event.assoc.dul.socket.socket
        seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with associated(scp((evt.EVT_CONN_OPEN, note))):
        wait_for(lambda: seen, "the connection")
    assert seen[0] != 0


@unmended
def test_senders_can_queue_for_a_connection(scp):
    """`AssociationServer`"""
    assert scp().request_queue_size >= 64


@unmended
def test_one_address_cannot_take_all_places(scp):
    """`AssociationServer`"""
    server = scp()
    with contextlib.ExitStack() as opened:
        for _ in range(server.ae.maximum_associations + 1):
            connection = opened.enter_context(socket.create_connection(server.server_address))
        assert closes_within(connection, 1)


@unmended
def test_a_connection_has_a_time_limit(scp):
    """`AssociationServer` and `limit_sending`"""
    seen: list[float | None] = []
    note = (
        evt.EVT_CONN_OPEN,
        lambda event: seen.append(event.assoc.dul.socket.socket.gettimeout()),
    )
    with associated(scp(note)):
        wait_for(lambda: seen, "the connection")
    assert seen[0] is not None


@pytest.mark.xfail(reason="pynetdicom 3.0", raises=ValueError, strict=True)
def test_a_server_that_was_only_made_can_be_shut_down():
    """`AssociationServer.stop_accepting`"""
    server = AE().make_server(("127.0.0.1", 0), contexts=[build_context(Verification)])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        server.shutdown()
    finally:
        thread.join()


@pytest.mark.xfail(reason="pynetdicom 3.0", raises=TypeError, strict=True)
def test_an_encoded_dataset_can_be_sent(scp):
    """`send_dataset`: no argument takes bytes."""
    with associated(scp()) as association:
        assert association.send_c_store(BytesIO(encode(radiograph()))).Status == 0x0000


@unmended
def test_failures_of_a_sender_are_no_errors_in_the_log(caplog, monkeypatch):
    """`configure_sending`: an Outcome has them already."""
    monkeypatch.setattr(logging.getLogger("pynetdicom"), "level", logging.NOTSET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ae = AE()
    ae.add_requested_context(DigitalXRayImageStorageForPresentation)
    with caplog.at_level(logging.ERROR):
        ae.associate("127.0.0.1", port)
    assert [record for record in caplog.records if record.name.startswith("pynetdicom")] == []
