"""Worker: batches form from what is queued, and what goes wrong goes round one by one."""

import errno
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nemt_dicom.config import DeliverySettings, FolderDestination, Settings
from nemt_dicom.files import Fs
from nemt_dicom.pipeline import content_digest
from nemt_dicom.service.child import Life
from nemt_dicom.service.delivery import Courier
from nemt_dicom.service.folder_sender import FolderSender
from nemt_dicom.service.receiver import digests
from nemt_dicom.service.worker import Worker, run_worker
from nemt_dicom.state.records import Arrival
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store
from tests.service.service_kit import PATIENT, StandInEngine, encode, radiograph
from tests.state.watched_fs import WatchedFs


class CountingEngine(StandInEngine):
    """Notes the size of each batch."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.batches: list[int] = []

    def explain(self, sources: Sequence[Any]) -> list[Any]:
        self.batches.append(len(sources))
        return super().explain(sources)


class Bench:
    """A worker with its store and spool, run step by step."""

    def __init__(self, folder: Path, fs: Fs | None = None) -> None:
        self.settings = Settings.model_validate(
            {
                "state": {"dir": folder},
                "explanation": {"max_batch": 4},
                "destinations": [{"kind": "folder", "name": "results", "path": folder / "results"}],
            }
        )
        self.store = Store(folder)
        self.spool = Spool(folder, process="worker", fs=fs)
        self.spool.prepare()
        self.engine = CountingEngine(self.settings)
        self.worker = Worker(self.settings, self.engine, self.spool, self.store, retry_s=0.001)

    def queue(self, *behaviours: str) -> None:
        for behaviour in behaviours:
            dataset = radiograph(behaviour=behaviour)
            arrival = Arrival(
                sop_class_uid=dataset.SOPClassUID,
                sop_instance_uid=dataset.SOPInstanceUID,
                content_digest=os.urandom(4).hex(),
                blob=self.spool.put(encode(dataset)),
                received=datetime.now(UTC),
            )
            self.store.receive(arrival)

    def work(self) -> None:
        """Until nothing is queued."""
        while batch := self.store.claim(self.worker.lease, 4):
            self.worker.attempt(batch)

    def states(self) -> list[str]:
        return [str(item.reason or item.state) for item in self.store.instances()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    opened: list[Bench] = []

    def make(fs: Fs | None = None) -> Bench:
        opened.append(Bench(tmp_path, fs))
        return opened[-1]

    yield make
    for item in opened:
        item.store.close()


def test_batches_form_from_what_is_queued(bench):
    up = bench()
    up.queue(*[""] * 9)
    up.work()
    assert up.engine.batches == [4, 4, 1]
    assert up.states() == ["done"] * 9


def test_refusals_leave_the_batch_and_the_rest_is_explained(bench):
    up = bench()
    up.queue("", "refuse", "")
    up.work()
    assert up.engine.batches == [2]
    assert up.states() == ["done", "not_chest", "done"]


def test_a_batch_of_refusals_asks_no_engine(bench):
    up = bench()
    up.queue("refuse", "refuse")
    up.work()
    assert up.engine.batches == []


@pytest.mark.parametrize(
    ("behaviour", "end", "runs"), [("error", "failed", 3), ("bad", "bad_output", 1)]
)
def test_one_that_fails_costs_no_other(bench, behaviour, end, runs):
    up = bench()
    up.queue("", behaviour, "")
    up.work()
    assert up.engine.batches == [3] + [1] * (2 + runs)
    assert up.states() == ["done", end, "done"]
    dead = up.store.instances()[1]
    assert PATIENT not in str(dead.detail)
    assert "service_kit.py" in str(dead.detail)


def test_a_missing_file_is_not_tried_for_ever(bench):
    up = bench()
    up.queue("")
    up.spool.path(up.store.instances()[0].blob).unlink()
    up.work()
    assert up.states() == ["failed"]


class FailingReads(WatchedFs):
    """Cannot read what is at `bad`, or anything while that is None."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.bad: Path | None = None
        self.healthy = False
        self.failures = 0

    def before(self, operation: str, *paths: Path) -> None:
        if operation == "read" and not self.healthy and self.bad in {None, *paths}:
            self.failures += 1
            raise OSError(self.number, os.strerror(self.number))


@contextmanager
def at_work(up: Bench) -> Iterator[Callable[..., None]]:
    """The worker in a thread; gives what waits for a condition while it lives."""
    stop = threading.Event()
    thread = threading.Thread(target=up.worker.run, args=(Life(stop=stop, ready=lambda _: None),))
    thread.start()

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    try:
        yield until
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENODEV])
@pytest.mark.parametrize("queued", [1, 3])
def test_a_failing_disk_charges_nothing_and_is_waited_for(bench, queued, number):
    disk = FailingReads(number)
    up = bench(disk)
    up.queue(*[""] * queued)
    with at_work(up) as until:
        until(lambda: disk.failures > 12)
        assert set(up.states()) <= {"queued", "inferring"}
        disk.healthy = True
        until(lambda: up.states() == ["done"] * queued)


def test_one_file_that_the_disk_fails_on_does_not_block_the_others(bench):
    disk = FailingReads(errno.EIO)
    up = bench(disk)
    up.queue(*[""] * 6)
    disk.bad = up.spool.path(up.store.instances()[1].blob)
    with at_work(up) as until:
        until(lambda: up.states().count("done") == 5)
        up.queue("")
        until(lambda: up.states().count("done") == 6 and disk.failures > 12)
        assert up.states()[1] in {"queued", "inferring"}
        disk.healthy = True
        until(lambda: up.states() == ["done"] * 7)


@pytest.mark.parametrize("how", ["moved away", "not mounted"])
def test_a_spool_that_is_away_buries_nothing(bench, how):
    up = bench()
    up.queue("", "", "")
    away = up.spool.blobs.with_name("away")
    up.spool.blobs.rename(away)
    if how == "not mounted":
        up.spool.blobs.mkdir()
    with at_work(up) as until:
        until(lambda: up.store.instances()[0].attempts > 5)
        assert set(up.states()) <= {"queued", "inferring"}
        away.rename(up.spool.blobs)
        until(lambda: up.states() == ["done"] * 3)


def test_damaged_bytes_are_not_explained(bench):
    """They may decode and be drawn on; when the image is sent again, the true ones are."""
    up = bench()
    up.queue("", "")
    blob = up.spool.path(up.store.instances()[0].blob)
    data = bytearray(blob.read_bytes())
    whole = bytes(data)
    data[-10] ^= 1
    blob.write_bytes(data)
    up.work()
    assert up.states() == ["failed", "done"]
    assert up.store.instances()[0].detail == "its bytes are damaged"
    up.spool.put(whole)
    up.store.retry(None, destinations=[])
    up.work()
    assert up.states() == ["done", "done"]


class FullDisk(WatchedFs):
    """Takes `room` writes, then none until there is room again."""

    room = 1000

    def __init__(self) -> None:
        self.failures: list[str] = []

    def before(self, operation: str, *_paths: Path) -> None:
        if operation == "write":
            if self.room == 0:
                self.failures.append("spool")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= 1


@pytest.mark.parametrize("where", ["spool", "release", "claim"])
@pytest.mark.parametrize("queued", [1, 2])
def test_a_full_disk_charges_nothing_and_is_waited_for(bench, monkeypatch, queued, where):
    """The spool has no room, or the database neither, when the worker puts back or looks."""
    disk, full, failures = FullDisk(), threading.Event(), []
    full.set()
    up = bench(disk)
    up.queue(*[""] * queued)
    disk.room = 0

    def without_room(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            if full.is_set():
                failures.append(where)
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return method(*args)

        return call

    if where != "spool":
        monkeypatch.setattr(up.store, where, without_room(getattr(up.store, where)))
    else:
        disk.failures = failures
    stop = threading.Event()
    life = Life(stop=stop, ready=lambda _: None)
    thread = threading.Thread(target=up.worker.run, args=(life,))
    thread.start()
    while len(failures) < 5:
        assert thread.is_alive()
        stop.wait(0.01)
    assert up.store.pending_by_destination() == {}
    disk.room = 100
    full.clear()
    while up.states() != ["done"] * queued:
        assert thread.is_alive()
        assert set(up.states()) <= {"queued", "inferring", "done"}
        stop.wait(0.01)
    stop.set()
    thread.join()


def test_runs_until_it_is_told_to_stop_and_puts_back_what_it_holds(bench, tmp_path):
    up = bench()
    up.queue("", "")
    stop, said = threading.Event(), []
    life = Life(stop=stop, ready=said.append)
    thread = threading.Thread(
        target=run_worker, args=(up.settings, life), kwargs={"engine": StandInEngine}
    )
    thread.start()
    while up.states() != ["done", "done"]:
        assert thread.is_alive()
        stop.wait(0.02)
    up.queue("")  # while it is idle: it wakes up by itself
    while up.states() != ["done"] * 3:
        assert thread.is_alive()
        stop.wait(0.02)
    stop.set()
    thread.join()
    assert said == [{"device": "stand-in", "bundle": "stand-in 1"}]


class CountingFs(WatchedFs):
    """Counts how often each file is read."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    def before(self, operation: str, *paths: Path) -> None:
        if operation == "read":
            self.reads[paths[0].name] += 1


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each content of more than 100 bytes was hashed, by its SHA-256."""
    counts: Counter[str] = Counter()
    sha256 = hashlib.sha256

    def count(data: bytes = b"", **options: bool) -> Any:
        digest = sha256(data, **options)
        if len(data) > 100:
            counts[digest.hexdigest()] += 1
        return digest

    monkeypatch.setattr(hashlib, "sha256", count)
    return counts


def test_a_blob_is_read_and_hashed_once_on_its_way(bench, hashed, tmp_path):
    """By the worker, and by the courier of a destination: bytes are handed on."""
    disk = CountingFs()
    up = bench(disk)
    up.queue("")
    (item,) = up.store.instances()
    hashed.clear()
    up.work()
    assert disk.reads == {item.blob: 1}
    outputs = up.store.blobs() - {item.blob}
    assert hashed == {item.blob: 1} | dict.fromkeys(outputs, 1)
    disk.reads.clear()
    hashed.clear()
    folder = FolderDestination(kind="folder", name="results", path=tmp_path / "results")
    folder.path.mkdir()
    settings = DeliverySettings()
    courier = Courier(
        "results", FolderSender(folder), settings=settings, spool=up.spool, store=up.store
    )
    while courier.step() is not None:
        pass
    assert len(list(folder.path.rglob("*.dcm"))) == 2
    assert disk.reads == hashed == dict.fromkeys(outputs, 1)


def test_the_engine_takes_the_digest_of_the_receiver(tmp_path):
    """The UIDs of the outputs hang on it: both ways to compute it must agree."""
    file = tmp_path / "file.dcm"
    file.write_bytes(encode(radiograph()))
    assert content_digest(file.read_bytes()) == digests(file)[1]
