"""Delivery: what goes on the wire, what each answer leads to, that destinations are apart."""

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import _config

from nemt_dicom.config import DeliverySettings, DicomDestination, FolderDestination, Settings
from nemt_dicom.log import instance_name
from nemt_dicom.service.delivery import Courier, make_sender
from nemt_dicom.service.dicom_sender import DicomSender
from nemt_dicom.service.folder_sender import FolderSender
from nemt_dicom.service.pynetdicom_patches import configure_sending
from nemt_dicom.service.sender import Answer, Outcome, outcome_of
from nemt_dicom.state.records import Delivery, Output
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store
from tests.service.service_kit import Pacs, dataset_of, encode, free_port, radiograph, wait_for
from tests.state.test_store import arrival

QUICK = DeliverySettings(
    retry_first_s=0.05, retry_longest_s=0.2, dimse_timeout_s=10, max_rejections=3
)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_config, "LOG_HANDLER_LEVEL", "none")
    configure_sending()


class Desk:
    """A store and a spool with outputs to deliver, and couriers that do it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.spool = Spool(folder, process="test")
        self.spool.prepare()
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    def add(self, *destinations: str, syntax: str = ExplicitVRLittleEndian) -> Output:
        """Stores an output for these destinations."""
        dataset = radiograph()
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == JPEGBaseline8Bit:
            dataset.PixelData = (
                b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x02\x00\x00\x00ab"
            )
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
        self.store.receive(arrival(dataset.SOPInstanceUID, generate_uid()))
        (item,) = self.store.claim("w", 1)
        output = Output(
            kind="sc",
            sop_class_uid=dataset.SOPClassUID,
            sop_instance_uid=dataset.SOPInstanceUID,
            study_instance_uid=dataset.StudyInstanceUID,
            transfer_syntax_uid=syntax,
            blob=self.spool.put(encode(dataset)),
        )
        self.store.complete("w", item.id, outputs=[output], destinations=destinations, summary={})
        return output

    def content(self, output: Output) -> str:
        return hashlib.sha256(dataset_of(self.spool.read(output.blob))).hexdigest()

    def courier(self, name: str, sender: object, settings: DeliverySettings = QUICK) -> Courier:
        return Courier(name, sender, settings=settings, spool=self.spool, store=self.store)

    def deliver_to(
        self, pacs: Pacs, name: str = "pacs", settings: DeliverySettings = QUICK
    ) -> None:
        destination = DicomDestination(
            kind="dicom", name=name, host="127.0.0.1", port=pacs.port, ae_title="PACS"
        )
        sender = DicomSender(destination, settings, lambda: self.store.pending_syntaxes(name))
        self.begin(self.courier(name, sender, settings))

    def begin(self, courier: Courier) -> None:
        self.threads.append(threading.Thread(target=courier.run, args=(self.stop,)))
        self.threads[-1].start()

    def delivery(self, output: Output, destination: str = "pacs") -> Delivery:
        (found,) = [
            item
            for instance in self.store.instances()
            for item in instance.deliveries
            if (item.output_uid, item.destination) == (output.sop_instance_uid, destination)
        ]
        return found

    def wait_until(self, output: Output, state: str, destination: str = "pacs") -> Delivery:
        wait_for(lambda: self.delivery(output, destination).state == state, state)
        return self.delivery(output, destination)

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
        self.store.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with Pacs(free_port()).running() as up:
        yield up


def test_stored_bytes_go_out_unchanged_over_one_association(desk, pacs):
    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian] * 3
    outputs = [desk.add("pacs", syntax=syntax) for syntax in syntaxes]
    desk.deliver_to(pacs)
    for output in outputs:
        delivery = desk.wait_until(output, "sent")
        assert (delivery.status, delivery.attempts) == ("0x0000", 1)
        assert pacs.received[output.sop_instance_uid] == [desk.content(output)]
    assert pacs.associations == 1


def test_encapsulated_output_goes_out_unchanged(desk):
    with Pacs(free_port()).running([JPEGBaseline8Bit]) as pacs:
        output = desk.add("pacs", syntax=JPEGBaseline8Bit)
        desk.deliver_to(pacs)
        desk.wait_until(output, "sent")
        assert pacs.received[output.sop_instance_uid] == [desk.content(output)]


def test_another_transfer_syntax_opens_another_association(desk, pacs):
    desk.deliver_to(pacs)
    first = desk.add("pacs", syntax=ExplicitVRLittleEndian)
    desk.wait_until(first, "sent")
    second = desk.add("pacs", syntax=ImplicitVRLittleEndian)
    desk.wait_until(second, "sent")
    assert pacs.associations == 2


def test_an_idle_association_is_closed_and_opened_again(desk, pacs):
    desk.deliver_to(pacs, settings=QUICK.model_copy(update={"idle_close_s": 0.1}))
    desk.wait_until(desk.add("pacs"), "sent")
    wait_for(lambda: not pacs.open_associations(), "the association to be closed")
    desk.wait_until(desk.add("pacs"), "sent")
    assert pacs.associations == 2


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0xB123, 0x0116, 0x0111])
def test_warnings_count_as_sent(desk, pacs, status):
    pacs.answer = lambda _uid: status
    output = desk.add("pacs")
    desk.deliver_to(pacs)
    delivery = desk.wait_until(output, "sent")
    assert delivery.status == f"0x{status:04X}"
    assert delivery.detail


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0117])
def test_a_rejected_output_becomes_a_dead_letter_and_the_rest_flows(desk, pacs, status):
    bad = desk.add("pacs")
    good = [desk.add("pacs") for _ in range(3)]
    asked: list[str] = []

    def answer(uid: str) -> int:
        asked.append(uid)
        return status if uid == bad.sop_instance_uid else 0x0000

    pacs.answer = answer
    desk.deliver_to(pacs)
    for output in good:
        desk.wait_until(output, "sent")
    delivery = desk.wait_until(bad, "dead")
    assert (delivery.status, delivery.attempts) == (f"0x{status:04X}", QUICK.max_rejections)
    assert asked.count(bad.sop_instance_uid) == QUICK.max_rejections


@pytest.mark.parametrize("status", [0xA700, 0x0110, 0x0122, 0x0124, 0x0213])
def test_what_the_destination_is_not_up_to_is_tried_again_and_holds_no_other_up(desk, pacs, status):
    slow, other = desk.add("pacs"), desk.add("pacs")
    refusals = iter([status] * 8)
    pacs.answer = lambda uid: next(refusals, 0) if uid == slow.sop_instance_uid else 0
    desk.deliver_to(pacs)
    desk.wait_until(other, "sent")
    assert desk.wait_until(slow, "sent").attempts == 9


def test_a_destination_not_yet_configured_for_an_output_gets_it_later(desk):
    pacs = Pacs(free_port())
    wrong = desk.add("pacs", syntax=ExplicitVRLittleEndian)
    right = desk.add("pacs", syntax=ImplicitVRLittleEndian)
    with pacs.running([ImplicitVRLittleEndian]):
        desk.deliver_to(pacs)
        desk.wait_until(right, "sent")
        wait_for(lambda: desk.delivery(wrong).attempts > QUICK.max_rejections, "attempts")
        delivery = desk.delivery(wrong)
        assert delivery.state == "pending"
        assert "no presentation context" in str(delivery.detail)
        desk.wait_until(desk.add("pacs", syntax=ImplicitVRLittleEndian), "sent")
    with pacs.running():
        desk.wait_until(wrong, "sent")


def test_a_dead_letter_takes_time(desk):
    """With the defaults no outage of half an hour makes one."""
    settings = DeliverySettings()
    courier = desk.courier("x", None, settings)
    pauses = [courier.rejection_pause(count) for count in range(settings.max_rejections - 1)]
    assert pauses[0] <= settings.retry_first_s
    assert sum(pauses) > 1800
    assert max(pauses) <= settings.retry_longest_s  # more would pass for a clock gone wrong


def test_outage_holds_up_no_other_destination_and_loses_nothing(desk, pacs):
    away = Pacs(free_port())
    outputs = [desk.add("away", "pacs") for _ in range(3)]
    desk.deliver_to(away, "away")
    desk.deliver_to(pacs)
    for output in outputs:
        desk.wait_until(output, "sent")
    wait_for(lambda: desk.delivery(outputs[0], "away").attempts > 4, "attempts")
    # One output is the probe, the others wait uncharged.
    assert [desk.delivery(output, "away").attempts for output in outputs[1:]] == [0, 0]
    with away.running():
        for output in outputs:
            desk.wait_until(output, "sent", "away")
        assert away.received == pacs.received


def test_a_peer_that_rejects_the_association_is_tried_again(desk, pacs):
    output = desk.add("pacs")
    settings = QUICK
    wrong = DicomDestination(
        kind="dicom", name="pacs", host="127.0.0.1", port=pacs.port, ae_title="PACS"
    )
    pacs.accept_title("OTHER")
    desk.begin(desk.courier("pacs", DicomSender(wrong, settings, list), settings))
    wait_for(lambda: desk.delivery(output).attempts > 1, "two attempts")
    assert "association rejected" in str(desk.delivery(output).detail)
    pacs.accept_title("SENDER", "NEMT")
    desk.wait_until(output, "sent")


def test_a_peer_that_drops_the_association_is_tried_again(desk, pacs):
    output = desk.add("pacs")
    drops = iter(range(3))

    def answer(_uid: str) -> int:
        if next(drops, None) is not None:
            pacs.abort_all()
        return 0x0000

    pacs.answer = answer
    desk.deliver_to(pacs)
    desk.wait_until(output, "sent")
    # Sent again after each drop, and always the same bytes.
    assert set(pacs.received[output.sop_instance_uid]) == {desk.content(output)}


def node(host: str = "127.0.0.1", port: int = 104) -> DicomDestination:
    return DicomDestination(kind="dicom", name="x", host=host, port=port, ae_title="PACS")


@pytest.mark.parametrize("host", ["does-not-exist.invalid", "pacs..hospital.local"])
def test_a_host_that_does_not_exist_is_unreachable(desk, host):
    destination = node().model_copy(update={"host": host})
    output = desk.add("x")
    outcome = DicomSender(destination, QUICK, list).send(output, desk.spool.read(output.blob))
    assert outcome.answer is Answer.UNREACHABLE
    assert outcome.detail == f"the host name {host} cannot be resolved"


def test_the_log_tells_why_nothing_arrives(desk, pacs, caplog):
    caplog.set_level("INFO", "nemt_dicom")
    output = desk.add("x")
    port = free_port()

    def line(destination: DicomDestination) -> str:
        caplog.clear()
        sender = DicomSender(destination, QUICK, list)
        desk.courier("x", sender).step()
        sender.close()
        (record,) = caplog.records
        return record.getMessage()

    assert f"no connection to 127.0.0.1 port {port}" in line(node(port=port))
    pacs.ae.require_called_aet = True
    pacs.ae.ae_title = "PACS"
    wrong = node(port=pacs.port).model_copy(update={"ae_title": "PACSS"})
    assert "association rejected: Called AE title not recognised" in line(wrong)
    assert "called PACSS, calling NEMT" in line(wrong)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        destination = node(port=silent.getsockname()[1])

        def hang_up() -> None:
            silent.accept()[0].close()

        threading.Thread(target=hang_up).start()
        assert "takes the connection but no association" in line(destination)
    assert line(node(port=pacs.port)).startswith("sc ")
    assert desk.wait_until(output, "sent", "x")


def test_what_the_peer_says_is_kept_but_not_logged(desk, pacs, caplog):
    caplog.set_level("DEBUG")
    pacs.answer = lambda _uid: 0xC000
    pacs.comment = "patient ZZPHI^CANARY unknown"
    output = desk.add("pacs")
    desk.deliver_to(pacs)
    detail = str(desk.wait_until(output, "dead").detail)
    assert detail.startswith("cannot understand")
    assert "ZZPHI^CANARY unknown" in detail
    assert "ZZPHI" not in caplog.text
    (dead,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "nemt-dicom jobs retry" in dead.getMessage()


def test_missing_and_damaged_bytes_are_a_dead_letter_and_never_sent(desk, pacs, caplog):
    caplog.set_level("INFO")
    lost, empty, damaged, kept = (desk.add("pacs") for _ in range(4))
    desk.spool.path(lost.blob).unlink()
    desk.spool.path(empty.blob).write_bytes(b"")
    path = desk.spool.path(damaged.blob)
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    desk.deliver_to(pacs)
    desk.wait_until(kept, "sent")
    assert "missing" in str(desk.wait_until(lost, "dead").detail)
    for output in (empty, damaged):
        delivery = desk.wait_until(output, "dead")
        assert (delivery.detail, delivery.attempts) == ("its bytes are damaged", 1)
    assert set(pacs.received) == {kept.sop_instance_uid}
    for item in desk.store.instances():  # an image can be followed through the log
        assert f"of instance {instance_name(item.sop_instance_uid)} to pacs: " in caplog.text


def test_a_spool_that_is_not_there_buries_nothing(desk, pacs):
    output = desk.add("pacs")
    away = desk.spool.blobs.rename(desk.spool.blobs.with_name("away"))
    desk.spool.blobs.mkdir()  # where it is mounted
    desk.deliver_to(pacs)
    wait_for(lambda: desk.delivery(output).attempts > 1, "attempts")
    assert "is it mounted?" in desk.delivery(output).detail
    desk.spool.blobs.rmdir()
    away.rename(desk.spool.blobs)
    desk.wait_until(output, "sent")


def test_bytes_that_cannot_be_read_hold_no_other_up(desk, pacs):
    stuck, kept = desk.add("pacs"), desk.add("pacs")
    path = desk.spool.path(stuck.blob)
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    desk.deliver_to(pacs)
    desk.wait_until(kept, "sent")
    wait_for(lambda: desk.delivery(stuck).attempts > QUICK.max_rejections, "attempts")
    assert desk.delivery(stuck).detail == "its bytes cannot be read: Is a directory"
    path.rmdir()
    path.write_bytes(data)
    desk.wait_until(stuck, "sent")


def test_an_unexpected_error_of_a_sender_holds_no_other_up(desk, caplog):
    bad, good = desk.add("x"), desk.add("x")

    class Sender:
        def send(self, output: Output, _data: bytes) -> Outcome:
            if output is not bad and output != bad:
                return Outcome(answer=Answer.SENT)
            raise LookupError("ZZPHI")

        def idle(self) -> None: ...

        def close(self) -> None: ...

    desk.begin(desk.courier("x", Sender()))
    desk.wait_until(good, "sent", "x")
    wait_for(lambda: desk.delivery(bad, "x").attempts > QUICK.max_rejections, "attempts")
    assert desk.delivery(bad, "x").state == "pending"
    assert "LookupError at test_delivery.py" in caplog.text
    assert "ZZPHI" not in caplog.text


def test_folder(desk, tmp_path):
    root = tmp_path / "results"
    root.mkdir()
    sender = FolderSender(FolderDestination(kind="folder", name="results", path=root))
    output = desk.add("results")
    desk.begin(desk.courier("results", sender))
    desk.wait_until(output, "sent", "results")
    (file,) = [path for path in root.rglob("*") if path.is_file()]
    assert file == root / output.study_instance_uid / f"{output.sop_instance_uid}.dcm"
    assert file.read_bytes() == desk.spool.path(output.blob).read_bytes()


def test_folder_never_shows_half_a_file(desk, tmp_path):
    seen = []

    class Watching(type(desk.spool.fs)):
        def fsync(self, path: Path) -> None:
            seen.append(("fsync", path.suffix, sorted(tmp_path.rglob("2*.dcm")) != []))
            super().fsync(path)

        def rename(self, source: Path, target: Path) -> None:
            seen.append(("rename", source.suffix, target.suffix))
            super().rename(source, target)

    root = tmp_path / "results"
    root.mkdir()
    destination = FolderDestination(kind="folder", name="results", path=root)
    sender = FolderSender(destination, fs=Watching())
    output = desk.add("results")
    assert sender.send(output, desk.spool.read(output.blob)).answer is Answer.SENT
    names = [item[0] for item in seen]
    assert names == ["fsync", "fsync", "rename", "fsync"]
    assert ("rename", ".part", ".dcm") in seen
    assert sender.send(output, desk.spool.read(output.blob)).answer is Answer.SENT  # again


def test_folder_that_is_not_there_is_not_made(desk, tmp_path):
    (tmp_path / "file").touch()
    output = desk.add("results")
    for path, fault in [
        (tmp_path / "share" / "results", "does not exist; is it mounted?"),
        (tmp_path / "file", "is not a folder"),
    ]:
        destination = FolderDestination(kind="folder", name="results", path=path)
        outcome = FolderSender(destination).send(output, desk.spool.read(output.blob))
        assert outcome.answer is Answer.UNREACHABLE
        assert outcome.detail == f"folder {path} {fault}"
    assert not (tmp_path / "share").exists()


def test_the_folder_that_is_used_without_any_destination_is_made(desk, tmp_path):
    settings = Settings.model_validate({"state": {"dir": tmp_path / "state"}})
    (destination,) = settings.resolved_destinations()
    output = desk.add("results")
    outcome = make_sender(destination, settings, list).send(output, desk.spool.read(output.blob))
    assert outcome.answer is Answer.SENT
    assert len(list((tmp_path / "state" / "results").rglob("*.dcm"))) == 1


def test_a_folder_that_takes_all_but_one_output_is_not_held_up(desk, tmp_path):
    bad, good = desk.add("results"), desk.add("results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / bad.study_instance_uid).touch()  # a file where a folder should be
    destination = FolderDestination(kind="folder", name="results", path=tmp_path / "results")
    desk.begin(desk.courier("results", FolderSender(destination)))
    desk.wait_until(good, "sent", "results")
    assert desk.delivery(bad, "results").state == "pending"


def test_uids_cannot_leave_the_folder(desk, tmp_path):
    destination = FolderDestination(kind="folder", name="results", path=tmp_path / "results")
    output = desk.add("results")
    bad = Output(**{**vars(output), "study_instance_uid": "../../outside"})
    outcome = FolderSender(destination).send(bad, desk.spool.read(output.blob))
    assert outcome.answer is Answer.REJECTED
    assert not (tmp_path / "results").exists()


def status(code: int | None) -> Dataset:
    answer = Dataset()
    if code is not None:
        answer.Status = code
    return answer


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (0x0000, Answer.SENT),
        (0xB000, Answer.SENT),
        (0xB006, Answer.SENT),
        (0xB007, Answer.SENT),
        (None, Answer.LATER),
        (0xA700, Answer.LATER),
        (0xA7FF, Answer.LATER),
        (0xA900, Answer.REJECTED),
        (0xC000, Answer.REJECTED),
        (0xCFFF, Answer.REJECTED),
        (0x0001, Answer.SENT),
        (0x0107, Answer.SENT),
        (0x0116, Answer.SENT),
        (0xBFFF, Answer.SENT),
        (0x0111, Answer.SENT),
        (0x0117, Answer.REJECTED),
        (0x0110, Answer.LATER),
        (0x0122, Answer.LATER),
        (0x0124, Answer.LATER),
        (0x0210, Answer.LATER),
        (0x0213, Answer.LATER),
        (0xFF00, Answer.LATER),
        (0x4242, Answer.LATER),
    ],
)
def test_status_table(code, answer):
    assert outcome_of(status(code)).answer is answer


def test_backoff_grows_with_jitter_up_to_the_limit(desk):
    courier = desk.courier("x", None, DeliverySettings())
    for failures, longest in [(0, 5), (1, 10), (3, 40), (6, 300), (1000, 300)]:
        pauses = [courier.backoff(failures) for _ in range(200)]
        assert 0 <= min(pauses) < longest * 0.2
        assert longest * 0.8 < max(pauses) <= longest


@pytest.mark.parametrize("waiting", [False, True])
def test_a_database_that_cannot_be_asked_does_not_end_the_courier(desk, monkeypatch, waiting):
    whole, failing = desk.store.data_version, [not waiting]

    def data_version() -> int:
        if failing.pop() if failing else False:
            raise OSError(5, os.strerror(5))
        return whole()

    monkeypatch.setattr(desk.store, "data_version", data_version)

    class Sender:
        def send(self, _output: Output, _data: bytes) -> Outcome:
            return Outcome(answer=Answer.SENT)

        def idle(self) -> None:
            if waiting and len(failing) == 0:
                failing.append(True)

        def close(self) -> None: ...

    desk.begin(desk.courier("x", Sender()))
    output = desk.add("x")
    desk.wait_until(output, "sent", "x")


def test_an_error_of_our_own_disk_does_not_end_the_courier(desk):
    output = desk.add("x")
    answers: list[Callable[[], Outcome]] = [
        lambda: (_ for _ in ()).throw(OSError(5, os.strerror(5))),
        lambda: Outcome(answer=Answer.SENT),
    ]

    class Sender:
        def send(self, _output: Output, _data: bytes) -> Outcome:
            return answers.pop(0)()

        def idle(self) -> None: ...

        def close(self) -> None: ...

    desk.begin(desk.courier("x", Sender()))
    desk.wait_until(output, "sent", "x")
