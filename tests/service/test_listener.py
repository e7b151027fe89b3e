"""Listener: negotiation, the answers on the wire, what is kept. Over real associations."""

import ast
import contextlib
import hashlib
import resource
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from nemt_dicom.config import Settings
from nemt_dicom.errors import Reason
from nemt_dicom.intake.admission import SOP_CLASSES
from nemt_dicom.intake.header import dataset_offset
from nemt_dicom.service import listener
from nemt_dicom.service.child import Child
from nemt_dicom.service.listener import TRANSFER_SYNTAXES, run_listener
from nemt_dicom.state.records import Instance
from nemt_dicom.state.spool import Spool, prepare_state_dir
from nemt_dicom.state.store import Store
from tests.conftest import ROOT
from tests.service.service_kit import (
    associate,
    begin_raw,
    dataset_of,
    encode,
    free_port,
    radiograph,
    send,
    send_raw,
    wait_for,
)


@dataclass
class Running:
    """A listener process and its state."""

    settings: Settings
    child: Child

    @property
    def state_dir(self) -> Path:
        return self.settings.state.dir

    def instance(self, uid: str) -> list[Instance]:
        store = Store(self.state_dir, read_only=True)
        try:
            return store.instances(sop_instance_uid=uid)
        finally:
            store.close()

    def temporaries(self) -> list[Path]:
        return list((self.state_dir / "spool" / "tmp" / "listener").iterdir())


def start(folder: Path, **changes: object) -> Running:
    settings = Settings.model_validate(
        {
            "state": {"dir": folder / "state"},
            "listener": {"port": free_port(), "min_free_mb": 0, **changes},
            "input": {"max_megapixels": 1},
        }
    )
    prepare_state_dir(settings.state.dir)
    Store(settings.state.dir).close()
    Spool(settings.state.dir, process="serve").prepare()
    child = Child("listener", settings)
    child.start(run_listener)
    wait_for(lambda: child.poll() is not None or child.report, "the listener")
    return Running(settings, child)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    up = start(tmp_path_factory.mktemp("listener"), max_object_mb=1)
    yield up
    up.child.kill()
    up.child.close()


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts listeners with other settings."""
    started = []

    def begin(**changes: object) -> Running:
        started.append(start(tmp_path, **changes))
        return started[-1]

    yield begin
    for up in started:
        up.child.kill()
        up.child.close()


def test_echo(running):
    ae = AE()
    ae.add_requested_context(Verification)
    listening = running.settings.listener
    association = ae.associate(listening.host, listening.port, ae_title=listening.ae_title)
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_offers_what_it_says_and_nothing_else(running):
    refused = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
    listening = running.settings.listener
    for sop_class in (*SOP_CLASSES, CTImageStorage, SegmentationStorage):
        ae = AE()
        for syntax in (*TRANSFER_SYNTAXES, *refused):
            ae.add_requested_context(sop_class, syntax)
        ae.add_requested_context(Verification)
        association = ae.associate(listening.host, listening.port, ae_title=listening.ae_title)
        accepted = {
            context.transfer_syntax[0]
            for context in association.accepted_contexts
            if context.abstract_syntax == sop_class
        }
        association.release()
        assert accepted == (set(TRANSFER_SYNTAXES) if sop_class in SOP_CLASSES else set())


@pytest.mark.parametrize(
    ("titles", "diagnostic"),
    [({"called": "OTHER"}, 0x07), ({"calling": "STRANGER"}, 0x03)],
    ids=["called", "calling"],
)
def test_unknown_titles_are_rejected(special, titles, diagnostic):
    up = special(allowed_calling_ae_titles=["SENDER"])
    with associate(up.settings, radiograph(), **titles) as association:
        assert association.is_rejected
        answer = association.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, diagnostic)
    assert send(up.settings, radiograph()) == [0x0000]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_was_sent_is_kept_byte_for_byte(running, syntax):
    dataset = radiograph()
    dataset.file_meta.TransferSyntaxUID = syntax
    assert send(running.settings, dataset) == [0x0000]
    (item,) = running.instance(dataset.SOPInstanceUID)
    assert (item.state, item.sop_class_uid) == ("queued", dataset.SOPClassUID)
    spool = Spool(running.state_dir, process="test")
    kept = spool.path(item.blob)
    sent = dataset_of(encode(dataset))
    with kept.open("rb") as file:
        start_kept = dataset_offset(file)
    assert kept.read_bytes()[start_kept:] == sent
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == item.blob
    assert hashlib.sha256(sent).hexdigest() == item.content_digest
    assert running.temporaries() == []


def test_duplicates_and_conflicts_are_acknowledged(running):
    dataset = radiograph()
    assert send(running.settings, dataset, dataset) == [0x0000, 0x0000]
    dataset.PatientID = "another content"
    assert send(running.settings, dataset) == [0x0000]
    assert [i.state for i in running.instance(dataset.SOPInstanceUID)] == ["queued", "conflict"]
    assert running.temporaries() == []


REFUSALS = {
    "path as UID": ({"SOPInstanceUID": "../../../tmp/x"}, 0xA900, Reason.INVALID_UID),
    "absolute path as UID": ({"SOPInstanceUID": "/tmp/x"}, 0xA900, Reason.INVALID_UID),
    "long UID": ({"SOPInstanceUID": "1." + "2" * 66}, 0xA900, Reason.INVALID_UID),
    "line end in UID": ({"SOPInstanceUID": "1.2\n3"}, 0xA900, Reason.INVALID_UID),
    "study": ({"StudyInstanceUID": "../1"}, 0xA900, Reason.INVALID_UID),
    "no rows": ({"Rows": None}, 0xA900, Reason.MISSING_ATTRIBUTE),
    "no columns": ({"Columns": None}, 0xA900, Reason.MISSING_ATTRIBUTE),
    "no study": ({"StudyInstanceUID": None}, 0xA900, Reason.MISSING_ATTRIBUTE),
    "no pixels": ({"PixelData": None}, 0xA900, Reason.NO_PIXEL_DATA),
    "short pixels": ({"PixelData": b"\0" * 100}, 0xC000, Reason.INVALID_SIZE),
    "no size": ({"Rows": 0}, 0xC000, Reason.INVALID_SIZE),
    "too large": ({"Rows": 60000, "Columns": 60000}, 0xC000, Reason.TOO_LARGE),
}


@pytest.mark.parametrize(("change", "status", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.filterwarnings("ignore")
def test_refusals_on_the_wire(running, change, status, reason):
    uid = generate_uid()
    dataset = radiograph(uid=uid)
    for keyword, value in change.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    answer = send_raw(running.settings, dataset)
    assert answer.Status == status
    assert len(answer.ErrorComment) <= 64
    assert str(reason) in answer.ErrorComment
    shown = str(dataset.SOPInstanceUID).replace("\n", "\\x0a")[:64]
    (item,) = running.instance(shown)
    assert (item.state, item.reason, item.blob) == ("refused", str(reason), None)
    assert running.temporaries() == []


def test_command_and_dataset_must_agree(running):
    for difference in (
        {"sop_instance": generate_uid()},
        {"sop_class": SecondaryCaptureImageStorage},
    ):
        dataset = radiograph()
        answer = send_raw(running.settings, dataset, **difference)
        assert answer.Status == 0xA900
        uid = difference.get("sop_instance", dataset.SOPInstanceUID)
        assert [item.reason for item in running.instance(uid)] == ["uid_mismatch"]


def test_unparsable_datasets(running):
    dataset = radiograph()
    answer = send_raw(running.settings, dataset, data=b"\xff" * 1000)
    assert answer.Status == 0xC000
    assert "ZZPHI" not in answer.ErrorComment
    assert send_raw(running.settings, radiograph(), data=b"\0").Status == 0xC000


def test_a_presentation_context_that_was_not_accepted_ends_the_association(special, capfd):
    up = special()
    with associate(up.settings, dataset := radiograph()) as association:
        context = association.accepted_contexts[0]
        context.context_id = 99
        begin_raw(association, dataset)
        association._reactor_checkpoint.set()
        wait_for(lambda: association.is_aborted, "the end of the association")
    wait_for(lambda: not up.temporaries(), "an empty tmp")
    assert send(up.settings, radiograph()) == [0x0000]
    log = capfd.readouterr().err
    assert "aborted an association: KeyError at dimse_messages.py" in log
    assert "Traceback" not in log


def test_unknown_sop_class_in_the_command_ends_the_association(running):
    with associate(running.settings, dataset := radiograph()) as association:
        begin_raw(association, dataset, sop_class="1.2.3")
        association._reactor_checkpoint.set()
        wait_for(lambda: association.is_aborted, "the end of the association")
    wait_for(lambda: not running.temporaries(), "an empty tmp")
    assert running.instance(dataset.SOPInstanceUID) == []


def test_refused_content_can_be_sent_corrected(running):
    dataset = radiograph()
    rows = dataset.Rows
    dataset.Rows = 0
    assert send(running.settings, dataset) == [0xC000]
    assert send(running.settings, dataset) == [0xC000]
    dataset.Rows = rows
    assert send(running.settings, dataset) == [0x0000]
    states = [(i.state, i.duplicates) for i in running.instance(dataset.SOPInstanceUID)]
    assert states == [("refused", 1), ("queued", 0)]


def test_no_room_is_no_loss(special):
    up = special(min_free_mb=10**9)
    dataset = radiograph()
    assert send(up.settings, dataset) == [0xA700]
    assert up.instance(dataset.SOPInstanceUID) == []
    assert up.temporaries() == []


def test_no_room_while_it_arrives_is_no_loss(special):
    up = special()
    whole, small = radiograph(size=1000), radiograph()
    before = resource.prlimit(up.child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(up.child.pid, resource.RLIMIT_FSIZE, (500_000, before[1]))
    assert send(up.settings, whole, small) == [0xA700, 0x0000]
    assert up.temporaries() == []
    assert up.instance(whole.SOPInstanceUID) == []
    resource.prlimit(up.child.pid, resource.RLIMIT_FSIZE, before)
    assert send(up.settings, whole) == [0x0000]


def test_a_folder_for_temporaries_that_is_gone_is_made_again(special):
    up = special()
    shutil.rmtree(up.state_dir / "spool" / "tmp")
    assert send(up.settings, radiograph(), radiograph()) == [0x0000, 0x0000]
    shutil.rmtree(up.state_dir / "spool" / "tmp")
    (up.state_dir / "spool" / "tmp").touch()
    assert send(up.settings, radiograph(), radiograph()) == [0xA700, 0xA700]


def test_a_database_that_fails_is_not_acknowledged(special):
    up = special()
    shutil.rmtree(up.state_dir / "spool" / "blob")
    (up.state_dir / "spool" / "blob").touch()  # no blob can be stored
    dataset = radiograph()
    assert send(up.settings, dataset) == [0xA700]
    assert up.instance(dataset.SOPInstanceUID) == []


def test_dataset_over_the_limit_ends_the_association(running):
    dataset = radiograph(size=1000)  # 2 MB, 1 is allowed
    assert send(running.settings, dataset) == [None]
    wait_for(lambda: not running.temporaries(), "an empty tmp")
    assert send(running.settings, radiograph()) == [0x0000]


def test_peer_that_vanishes_leaves_nothing(running):
    dataset = radiograph(size=400)
    for _ in range(5):
        with associate(running.settings, dataset) as association:
            begin_raw(association, dataset, fragments=3)
            wait_for(running.temporaries, "the dataset to arrive")
            connection = association.dul.socket.socket
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()  # with a reset
        wait_for(lambda: not running.temporaries(), "an empty tmp")
    assert running.instance(dataset.SOPInstanceUID) == []


def echo(settings: Settings, address: str = "127.0.0.1") -> bool:
    """Whether a C-ECHO from that address of this machine is answered."""
    ae = AE()
    ae.add_requested_context(Verification)
    listening = settings.listener
    to = {"ae_title": listening.ae_title, "bind_address": (address, 0)}
    association = ae.associate(listening.host, listening.port, **to)
    if not association.is_established:
        return False
    answered = association.send_c_echo().get("Status") == 0x0000
    association.release()
    return answered


def test_peers_that_drip_lose_their_places(special):
    up = special(pdu_timeout_s=1, max_associations=3)
    stop = threading.Event()
    ae = AE()
    ae.add_requested_context(Verification)
    listening = up.settings.listener
    dripping = [
        ae.associate(listening.host, listening.port, ae_title=listening.ae_title) for _ in range(3)
    ]
    sockets = [association.dul.socket.socket for association in dripping]

    def drip() -> None:
        part = struct.pack(">BBL", 4, 0, 100_000)
        while not stop.wait(0.2):
            for connection in sockets:
                with contextlib.suppress(OSError):
                    connection.send(part)
            part = b"x"

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    assert not echo(up.settings)
    wait_for(lambda: echo(up.settings), "a free place", 20)
    assert time.monotonic() - began > 0.5
    stop.set()
    thread.join()
    wait_for(lambda: not any(a.is_established for a in dripping), "the end of the associations")


def test_connections_that_end_before_an_association_hold_no_place(special):
    up = special(max_associations=3, pdu_timeout_s=1)
    address = (up.settings.listener.host, up.settings.listener.port)
    for _ in range(20):
        socket.create_connection(address).close()
    half = [socket.create_connection(address) for _ in range(3)]
    for connection in half:
        connection.send(b"\x01\x00\x00")
    wait_for(lambda: echo(up.settings), "a free place", 10)
    for connection in half:
        connection.close()


def test_a_pdu_of_impossible_length_is_not_read(running):
    with socket.create_connection(
        (running.settings.listener.host, running.settings.listener.port)
    ) as connection:
        connection.settimeout(10)
        connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
        assert connection.recv(100) == b""


def test_one_address_cannot_take_all_places(special):
    up = special(max_associations=3, max_associations_per_address=2)
    with associate(up.settings, radiograph()) as first, associate(up.settings, radiograph()):
        assert not echo(up.settings)
        assert echo(up.settings, "127.0.0.2")
        first.release()
        wait_for(lambda: echo(up.settings), "a free place", 20)


def test_many_senders_at_once(running):
    datasets = [[radiograph() for _ in range(4)] for _ in range(6)]
    statuses: list[list[int | None]] = []
    threads = [
        threading.Thread(target=lambda part=part: statuses.append(send(running.settings, *part)))
        for part in datasets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [[0x0000] * 4] * 6
    for part in datasets:
        for dataset in part:
            assert len(running.instance(dataset.SOPInstanceUID)) == 1


def test_port_that_is_taken(special):
    with socket.create_server(("127.0.0.1", 0)) as other:
        up = special(port=other.getsockname()[1])
        wait_for(lambda: up.child.poll() is not None, "the end of the listener")
        assert up.child.report is not None
        assert "Address already in use" in up.child.report.failure


def test_every_refusal_of_the_header_has_a_status():
    header = (ROOT / "nemt_dicom" / "intake" / "header.py").read_text("utf-8")
    receiver = Path(listener.__file__).with_name("receiver.py").read_text("utf-8")
    used = {
        node.attr
        for node in ast.walk(ast.parse(header + receiver))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Reason"
    }
    assert {Reason[name] for name in used} <= set(listener.REFUSAL_STATUS)


def test_there_is_one_place_that_acknowledges():
    tree = ast.parse(Path(listener.__file__).read_text("utf-8"))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assert names.count("SUCCESS") == 2  # its definition, and one return
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    assert not [value for value in returned if isinstance(value, ast.Constant) and value.value == 0]
