"""Spool: order of operations, power cuts, full disks, the lock."""

import errno
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from nemt_dicom.config import Settings
from nemt_dicom.errors import DamagedBlob, StateError, StateInUse
from nemt_dicom.service.receiver import Receiver, Request, digests
from nemt_dicom.state.records import Arrival, Receipt
from nemt_dicom.state.spool import Spool, StateLock, prepare_state_dir
from nemt_dicom.state.store import Store
from tests.service.service_kit import dataset_of, encode, radiograph
from tests.state.watched_fs import WatchedFs


class RecordingFs(WatchedFs):
    """Writes down what is done, with names that do not change from run to run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []

    def before(self, operation: str, *paths: Path) -> None:
        if operation in {"read", "unlink"}:
            return
        names = []
        for path in paths:
            parts = path.relative_to(self.root).parts
            names.append("/".join("FILE" if len(part) >= 16 else part for part in parts))
        self.log.append(" ".join([operation, *names]))


class RecordingStore(Store):
    """Notes a commit among the operations of a `RecordingFs`."""

    log: list[str]

    def receive(self, arrival: Arrival) -> Receipt:
        receipt = super().receive(arrival)
        self.log.append("commit")
        return receipt


def settings_for(state_dir: Path) -> Settings:
    return Settings.model_validate({"state": {"dir": state_dir}, "listener": {"min_free_mb": 0}})


def received_file(spool: Spool, dataset=None) -> tuple[Path, Request]:
    """A file as the network leaves it in the spool's tmp, and what the command said of it."""
    dataset = dataset or radiograph()
    path = spool.tmp / "received-file-of-a-peer.dcm"
    path.write_bytes(encode(dataset))
    return path, Request(
        sop_class_uid=dataset.SOPClassUID,
        sop_instance_uid=dataset.SOPInstanceUID,
        abstract_syntax_uid=dataset.SOPClassUID,
        transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
    )


def test_put_syncs_file_then_renames_then_syncs_folder(tmp_path):
    fs = RecordingFs(tmp_path)
    spool = Spool(tmp_path, process="worker", fs=fs)
    spool.prepare()
    data = b"some output"
    shard = hashlib.sha256(data).hexdigest()[:2]
    fs.log.clear()
    digest = spool.put(data)
    assert fs.log == [
        "write spool/tmp/worker/FILE",
        "fsync spool/tmp/worker/FILE",
        f"mkdir spool/blob/{shard}",
        "fsync spool/blob",
        f"rename spool/tmp/worker/FILE spool/blob/{shard}/FILE",
        f"fsync spool/blob/{shard}",
    ]
    assert spool.path(digest).read_bytes() == data

    fs.log.clear()
    assert spool.put(data) == digest  # the blob exists, but nobody knows if its entry is synced
    assert fs.log[-1] == f"fsync spool/blob/{shard}"
    assert list(spool.tmp.iterdir()) == []


def test_reception_commits_only_after_the_last_sync(tmp_path):
    fs = RecordingFs(tmp_path)
    spool = Spool(tmp_path, process="listener", fs=fs)
    spool.prepare()
    store = RecordingStore(tmp_path)
    store.log = fs.log
    path, request = received_file(spool)
    shard = digests(path)[0][:2]
    fs.log.clear()
    receipt = Receiver(settings_for(tmp_path), spool, store).keep(path, request)
    assert receipt is Receipt.QUEUED
    assert fs.log == [
        "fsync spool/tmp/listener/FILE",
        f"mkdir spool/blob/{shard}",
        "fsync spool/blob",
        f"rename spool/tmp/listener/FILE spool/blob/{shard}/FILE",
        f"fsync spool/blob/{shard}",
        "commit",
    ]
    store.close()


def test_what_is_read_is_what_was_stored(tmp_path):
    spool = Spool(tmp_path, process="worker")
    spool.prepare()
    data = os.urandom(1000)
    digest = spool.put(data)
    assert spool.read(digest) == data
    for damaged in (b"", data[:-1], data[:500] + bytes(20) + data[520:]):
        spool.path(digest).write_bytes(damaged)
        with pytest.raises(DamagedBlob, match="its bytes are damaged"):
            spool.read(digest)
    spool.path(digest).unlink()
    with pytest.raises(FileNotFoundError):
        spool.read(digest)
    spool.path(digest).mkdir()
    with pytest.raises(IsADirectoryError):
        spool.read(digest)


class PowerCut(BaseException):
    """The machine is off. Not an Exception: no code runs after it that could tidy up."""


class PowerCutFs(WatchedFs):
    """Keeps track of what a power cut would leave, and cuts before operation `cut_at`.

    With `eager` everything but unsynced content survives (folders reach the disk by themselves),
    without it only what was synced.
    """

    def __init__(self, root: Path, *, cut_at: int, eager: bool) -> None:
        self.root = root
        self.cut_at = cut_at
        self.eager = eager
        self.count = 0
        self.content: dict[int, bytes] = {}
        self.entries: dict[Path, dict[str, int]] = {root: {}}

    def before(self, operation: str, *_paths: Path) -> None:
        self.count += operation != "read"
        if self.count == self.cut_at:
            raise PowerCut

    def write(self, path: Path, data: bytes) -> None:
        super().write(path, data)
        self.content.pop(path.stat().st_ino, None)

    def fsync(self, path: Path) -> None:
        self.before("fsync", path)
        if path.is_dir():
            self.entries[path] = {item.name: item.stat().st_ino for item in path.iterdir()}
        else:
            self.content[path.stat().st_ino] = path.read_bytes()

    def leave(self, target: Path) -> None:
        """Writes what the cut has left to `target`. The database commits by itself."""
        target.mkdir(mode=0o700)
        self._leave(self.root, target)
        for file in self.root.glob("store.db*"):
            shutil.copy(file, target / file.name)

    def _leave(self, folder: Path, target: Path) -> None:
        names = (
            {item.name: item.stat().st_ino for item in folder.iterdir()}
            if self.eager
            else self.entries.get(folder, {})
        )
        for name, inode in names.items():
            if (folder / name).is_dir():
                (target / name).mkdir()
                self._leave(folder / name, target / name)
            elif not name.startswith("store.db"):
                (target / name).write_bytes(self.content.get(inode, b""))


@pytest.mark.parametrize("eager", [False, True])
def test_power_cut_loses_nothing_that_was_acknowledged(tmp_path, eager):
    cut_at = 0
    finished = False
    while not finished:
        cut_at += 1
        live, after = tmp_path / f"live{cut_at}", tmp_path / f"after{cut_at}"
        live.mkdir()
        fs = PowerCutFs(live, cut_at=cut_at, eager=eager)
        acknowledged = []
        try:
            spool = Spool(live, process="listener", fs=fs)
            store = Store(live)
            spool.prepare()
            receiver = Receiver(settings_for(live), spool, store)
            for _ in range(3):
                path, request = received_file(spool)
                fs.content.pop(path.stat().st_ino, None)
                data = path.read_bytes()
                receiver.keep(path, request)
                acknowledged.append((request.sop_instance_uid, data))
            finished = True
        except PowerCut:
            pass
        fs.leave(after)
        store.close()
        reopened, blobs = Store(after), Spool(after, process="serve")
        blobs.sweep(reopened.blobs())
        stored = {item.sop_instance_uid: item.blob for item in reopened.instances()}
        for uid, data in acknowledged:
            assert blobs.path(stored[uid]).read_bytes() == data, f"cut at {cut_at}"
        for blob in stored.values():  # whatever is in the database can be worked on
            content = blobs.path(blob).read_bytes()
            assert hashlib.sha256(content).hexdigest() == blob
        reopened.close()
    assert cut_at > 20


class FailingFs(WatchedFs):
    """Fails at operation `fail_at` with `number`; reading and removing are none."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fail_at = 0
        self.count = 0

    def before(self, operation: str, *_paths: Path) -> None:
        if operation in {"read", "unlink"}:
            return
        self.count += 1
        if self.count == self.fail_at:
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_no_row_and_no_temporary(tmp_path, number):
    fs = FailingFs(number)
    spool = Spool(tmp_path, process="worker", fs=fs)
    spool.prepare()
    store = Store(tmp_path)
    receiver = Receiver(settings_for(tmp_path), spool, store)
    for fail_at in range(1, 6):
        fs.count, fs.fail_at = 0, fail_at
        path, request = received_file(spool)
        with pytest.raises(OSError, match=os.strerror(number)):
            receiver.keep(path, request)
        path.unlink(missing_ok=True)  # as the network code does with what was not taken
        assert store.instances() == []
        fs.count = 0
        with pytest.raises(OSError, match=os.strerror(number)):
            spool.put(os.urandom(8))
        assert list(spool.tmp.iterdir()) == []
        spool._durable_folders.clear()
    store.close()


def test_sweep_removes_temporaries_and_orphans_only(tmp_path):
    spool = Spool(tmp_path, process="worker")
    spool.prepare()
    kept, orphan = spool.put(b"kept"), spool.put(b"orphan")
    (spool.tmp / "half written").write_bytes(b"x")
    assert Spool(tmp_path, process="serve").sweep({kept}) == 1
    assert spool.path(kept).exists()
    assert not spool.path(orphan).exists()
    assert list(spool.tmp.iterdir()) == []


def received_by_network(spool: Spool, dataset) -> tuple[Path, Request]:
    """As `received_file`, written by pynetdicom."""
    path, request = received_file(spool, dataset)
    data = path.read_bytes()
    syntax = dataset.file_meta.TransferSyntaxUID
    meta = create_file_meta(
        sop_class_uid=request.sop_class_uid,
        sop_instance_uid=request.sop_instance_uid,
        transfer_syntax=syntax,
    )
    path.write_bytes(b"\0" * 128 + b"DICM" + encode_file_meta(meta) + dataset_of(data))
    return path, request


SMALLEST = {"max_megapixels": 0.0001}


def test_blobs_that_the_database_does_not_know_are_taken_back(tmp_path):
    """Once and as they were received; not what is ours, not what is no whole instance."""
    spool = Spool(tmp_path, process="listener")
    spool.prepare()
    store = Store(tmp_path)
    receiver = Receiver(settings_for(tmp_path), spool, store)
    rewritten = radiograph()
    for dataset in (radiograph(), radiograph(uid=rewritten.SOPInstanceUID), rewritten):
        path, request = received_by_network(spool, dataset)
        os.utime(path, (1_700_000_000 + len(store.instances()),) * 2)
        receiver.keep(path, request)
    before = store.instances()
    assert [item.state for item in before] == ["queued", "queued", "conflict"]
    store.close()
    whole = spool.path(before[0].blob).read_bytes()
    partial = spool.put(whole[: len(whole) - 1])
    others = [partial, spool.put(b""), spool.put(os.urandom(1000)), spool.put(whole[:140])]
    ours = radiograph(Manufacturer="NEMt DICOM")
    ours.file_meta.ImplementationClassUID = "1.2.826.0.1.3680043.9.7433.1.1"
    others.append(spool.put(encode(ours)))
    for file in tmp_path.glob("store.db*"):
        file.unlink()

    store = Store(tmp_path)
    strict = Settings.model_validate(settings_for(tmp_path).model_dump() | {"input": SMALLEST})
    receiver = Receiver(strict, spool, store)  # they were acknowledged under other settings
    assert spool.sweep(store.blobs(), receiver.take_back) == len(others)
    assert [spool.path(blob).exists() for blob in others] == [False] * len(others)
    after = store.instances()
    assert [(i.blob, i.state, i.received, i.content_digest) for i in after] == [
        (i.blob, i.state, i.received, i.content_digest) for i in before
    ]
    assert spool.sweep(store.blobs(), receiver.take_back) == 0
    # The same content in another file is known and goes, and counts as no duplicate.
    spool.put(whole.replace(b"PYNETDICOM", b"PYNETDICON"))
    assert spool.sweep(store.blobs(), receiver.take_back) == 1
    assert store.instances()[0].duplicates == 0
    store.close()


@pytest.mark.parametrize("cut", range(132, 700, 7))
def test_a_cut_blob_is_never_an_error(tmp_path, cut):
    spool = Spool(tmp_path, process="listener")
    spool.prepare()
    path, _ = received_by_network(spool, radiograph())
    spool.put(path.read_bytes()[:cut])
    store = Store(tmp_path)
    receiver = Receiver(settings_for(tmp_path), spool, store)
    assert spool.sweep(set(), receiver.take_back) == 1
    assert store.instances() == []
    store.close()


@pytest.mark.parametrize("place", [-1, 300], ids=["pixels", "header"])
def test_a_damaged_blob_is_neither_taken_back_nor_removed(tmp_path, caplog, place):
    """It may be all that is left of an image; its bytes are not those that came."""
    spool = Spool(tmp_path, process="listener")
    spool.prepare()
    path, _ = received_by_network(spool, radiograph())
    blob = spool.path(spool.put(path.read_bytes()))
    data = bytearray(blob.read_bytes())
    data[place] ^= 1
    blob.write_bytes(data)
    store = Store(tmp_path)
    assert spool.sweep(set(), Receiver(settings_for(tmp_path), spool, store).take_back) == 0
    assert blob.exists()
    assert store.instances() == []
    assert "is damaged and is left" in caplog.text
    store.close()


def test_a_duplicate_leaves_the_time_of_receipt(tmp_path):
    spool = Spool(tmp_path, process="listener")
    spool.prepare()
    blob = spool.path(spool.put(b"bytes"))
    os.utime(blob, (1_700_000_000,) * 2)
    spool.put(b"bytes")
    assert blob.stat().st_mtime == 1_700_000_000


def test_what_cannot_be_read_or_recorded_is_left(tmp_path, monkeypatch, caplog):
    spool = Spool(tmp_path, process="listener")
    spool.prepare()
    path, _ = received_by_network(spool, radiograph())
    blob = spool.path(spool.put(path.read_bytes()))
    store = Store(tmp_path)
    receiver = Receiver(settings_for(tmp_path), spool, store)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("nemt_dicom.service.receiver.digests", fail)
        assert spool.sweep(set(), receiver.take_back) == 0
        assert "cannot be read and is left: Input/output error" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(store, "receive", fail)
        with pytest.raises(OSError, match="Input/output"):
            spool.sweep(set(), receiver.take_back)
    assert blob.exists()
    assert spool.sweep(set(), receiver.take_back) == 0
    assert len(store.instances()) == 1
    store.close()


def test_state_folder_is_for_its_owner_only(tmp_path):
    fresh, empty, foreign = tmp_path / "a" / "b", tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir(mode=0o755)
    foreign.mkdir()
    foreign.chmod(0o755)
    (foreign / "of others").touch()
    for folder, mode in [(fresh, 0o700), (empty, 0o700), (foreign, 0o755)]:
        prepare_state_dir(folder)
        spool = Spool(folder, process="serve")
        spool.prepare()
        store = Store(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == mode
        assert stat.S_IMODE(spool.root.stat().st_mode) == 0o700
        for file in folder.glob("store.db*"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        store.close()


def test_state_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file"):
        prepare_state_dir(tmp_path / "file")


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from nemt_dicom.state.spool import StateLock
with StateLock(Path(sys.argv[1])):
    # Like a child that is slow to die: it must not keep the lock.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_lock_names_its_holder_and_ends_with_it(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(StateInUse, match=rf"process {holder.pid}$"):
                StateLock(tmp_path).__enter__()
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            os.kill(child, 0)  # it lives, and yet:
            with StateLock(tmp_path):
                assert (tmp_path / "lock").read_text().strip() == str(os.getpid())
        finally:
            os.kill(child, signal.SIGKILL)


def test_lock_waits_for_the_children_of_a_predecessor(tmp_path):
    code = (
        "import sys; from pathlib import Path; from nemt_dicom.state.spool import hold_as_child; "
        "hold_as_child(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(StateInUse, match="do not end"):
            StateLock(tmp_path, child_patience_s=0.1).__enter__()
        child.stdin.close()
        with StateLock(tmp_path, child_patience_s=60):
            pass


def test_digests_leave_the_file_meta_information_out(tmp_path):
    dataset = radiograph()
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(encode(dataset))
    dataset.file_meta.SourceApplicationEntityTitle = "OTHER"
    second.write_bytes(encode(dataset))
    (whole_1, content_1), (whole_2, content_2) = digests(first), digests(second)
    assert content_1 == content_2
    assert whole_1 != whole_2
    assert whole_1 == hashlib.sha256(first.read_bytes()).hexdigest()


def test_received_time_is_aware(tmp_path):
    spool = Spool(tmp_path, process="listener")
    spool.prepare()
    store = Store(tmp_path)
    Receiver(settings_for(tmp_path), spool, store).keep(*received_file(spool))
    assert store.instances()[0].received <= datetime.now(UTC)
    store.close()
