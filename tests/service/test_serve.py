"""The whole service as processes: crashes, kills, restarts, ends. With a stand-in engine."""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from nemt_dicom import cli
from nemt_dicom.config import Settings
from nemt_dicom.errors import BundleError, NemtError, StateError, StateInUse
from nemt_dicom.log import instance_name
from nemt_dicom.service.child import Child, Life
from nemt_dicom.service.serve import Service, ServiceInfo, _Watched
from nemt_dicom.state.records import Instance
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store
from tests.service.service_kit import (
    PATIENT,
    Pacs,
    StandInEngine,
    free_port,
    output_uid,
    radiograph,
    send,
    wait_for,
)

if TYPE_CHECKING:  # children import this file, and are to be quick
    from nemt_dicom.pipeline import EngineFactory


@dataclass(frozen=True, kw_only=True)
class RunningService:
    """A service that runs beside the caller."""

    info: ServiceInfo
    service: Service


@contextmanager
def start_service(settings: Settings, engine: "EngineFactory") -> Iterator[RunningService]:
    """The real service beside the test, in a thread of its own, while the context lasts.

    Raises what `serve` raises.
    """
    service = Service(settings, engine)
    ready = threading.Event()
    result: list[ServiceInfo | NemtError | OSError] = []

    def run() -> None:
        try:
            info = service.start()
            if info is not None:
                result.append(info)
                ready.set()
                service.watch()
        except (NemtError, OSError) as error:
            result.append(error)
        finally:
            service.stop()
            ready.set()

    thread = threading.Thread(target=run, name="service", daemon=True)
    thread.start()
    try:
        ready.wait()
        info = result[0] if result else NemtError("the service ended at its start; see the log")
        if isinstance(info, Exception):
            raise info
        yield RunningService(info=info, service=service)
    finally:
        service.ask_to_stop()
        thread.join()


SERVE = """
import pickle, sys
settings, engine = pickle.load(sys.stdin.buffer)
from nemt_dicom.service.serve import serve
def ready(info):
    print("ready", info, flush=True)
sys.exit(serve(settings, on_ready=ready, engine=engine))
"""


def service_settings(folder: Path, pacs: Pacs | None = None, **explanation: Any) -> Settings:
    destinations: list[dict[str, Any]] = [
        {"kind": "folder", "name": "results", "path": folder / "results"}
    ]
    (folder / "results").mkdir(exist_ok=True)
    if pacs is not None:
        destinations.append(
            {"kind": "dicom", "name": "pacs", "host": "127.0.0.1", "port": pacs.port}
            | {"ae_title": "PACS"}
        )
    return Settings.model_validate(
        {
            "state": {"dir": folder / "state"},
            "listener": {"port": free_port(), "min_free_mb": 0},
            "explanation": explanation,
            "delivery": {"retry_first_s": 0.1, "retry_longest_s": 0.5},
            "destinations": destinations,
        }
    )


class Served:
    """`serve` in a process of its own, as a person starts it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings = settings
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                process_group=0,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((self.settings, StandInEngine), self.process.stdin)
        self.process.stdin.close()
        assert self.process.stdout.readline().startswith(b"ready"), self.log.read_text()

    def kill(self) -> None:
        """As the kernel or an operator may: without any warning."""
        assert self.process is not None
        self.process.kill()
        self.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.close()

    def close(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        code = self.process.wait(60)
        self.process.stdout.close()
        return code

    def children(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[Settings], Served]]:
    started: list[Served] = []

    def begin(settings: Settings) -> Served:
        started.append(Served(settings, tmp_path / "log"))
        started[-1].start()
        return started[-1]

    yield begin
    for service in started:
        if service.process is not None and service.process.poll() is None:
            service.kill()


def instances(settings: Settings) -> list[Instance]:
    store = Store(settings.state.dir, read_only=True)
    try:
        return store.instances()
    finally:
        store.close()


def settled(settings: Settings) -> bool:
    """Whether nothing is left to do."""
    store = Store(settings.state.dir, read_only=True)
    try:
        waiting = {"queued", "inferring"} & set(store.counts())
        return not waiting and store.pending_by_destination() == {}
    finally:
        store.close()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def answers(settings: Settings) -> bool:
    ae = AE()
    ae.add_requested_context(Verification)
    listener = settings.listener
    association = ae.associate(listener.host, listener.port, ae_title=listener.ae_title)
    if not association.is_established:
        return False
    association.release()
    return True


@contextmanager
def running(settings: Settings) -> Iterator[RunningService]:
    with start_service(settings, StandInEngine) as service:
        yield service


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with Pacs(free_port()).running() as up:
        yield up


def test_one_image_becomes_two_objects_everywhere(tmp_path, pacs):
    settings = service_settings(tmp_path, pacs)
    dataset = radiograph()
    with running(settings) as up:
        assert str(settings.listener.port) in str(up.info)
        assert "NEMT listens on 127.0.0.1" in str(up.info)
        assert "stand-in" in str(up.info)
        assert send(settings, dataset) == [0x0000]
        wait_for(lambda: settled(settings), "the outputs")
        (item,) = instances(settings)
    expected = {output_uid(dataset.SOPInstanceUID, kind) for kind in ("seg", "sc")}
    assert set(pacs.received) == expected
    files = (tmp_path / "results" / dataset.StudyInstanceUID).iterdir()
    assert {path.stem for path in files} == expected
    assert item.state == "done"
    assert item.summary is not None
    assert item.summary.items() >= {"verdict": "explained", "probability": 0.5}.items()
    assert {"read_ms", "explain_ms", "build_ms", "batch"} <= set(item.summary)
    assert {(d.destination, d.state) for d in item.deliveries} == {
        ("pacs", "sent"),
        ("results", "sent"),
    }


def test_every_input_ends_in_a_state_with_its_reason(tmp_path):
    settings = service_settings(tmp_path)
    behaviours = ["", "refuse", "bad", "error", "crash", ""]
    datasets = [radiograph(behaviour=behaviour) for behaviour in behaviours]
    with running(settings):
        assert send(settings, *datasets) == [0x0000] * len(datasets)
        wait_for(lambda: settled(settings), "the end of all")
        found = [(item.state, item.reason) for item in instances(settings)]
    assert found == [
        ("done", None),
        ("refused", "not_chest"),
        ("dead", "bad_output"),
        ("dead", "failed"),
        ("dead", "worker_crash"),
        ("done", None),
    ]
    assert not [item for item in instances(settings) if PATIENT in str(item.detail)]


def test_the_same_again_gives_nothing_new(tmp_path, pacs):
    settings = service_settings(tmp_path, pacs)
    datasets = [radiograph() for _ in range(3)]
    with running(settings):
        for _ in range(2):
            assert send(settings, *datasets) == [0x0000] * 3
            wait_for(lambda: settled(settings), "the outputs")
    with running(settings):  # and after a restart
        assert send(settings, *datasets) == [0x0000] * 3
        wait_for(lambda: settled(settings), "the outputs")
    assert [len(contents) for contents in pacs.received.values()] == [1] * 6
    assert [item.duplicates for item in instances(settings)] == [2, 2, 2]


def test_killed_children_come_back_and_nothing_is_lost(tmp_path, pacs):
    settings = service_settings(tmp_path, pacs)
    datasets = [radiograph() for _ in range(12)]
    with running(settings) as up:
        for turn, name in enumerate(["worker", "listener", "delivery"] * 2):
            part = datasets[2 * turn : 2 * turn + 2]
            send(settings, *part)
            kill_child(up.service, name)
            for dataset in part:  # as a sender does that has no answer
                send_until_acknowledged(settings, dataset)
        wait_for(lambda: settled(settings), "the outputs")
    assert [item.state for item in instances(settings)] == ["done"] * 12
    assert_each_once(pacs, datasets)


def kill_child(service: Service, name: str) -> None:
    """Kills a child and waits until it is back."""
    before = service.pids[name]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: service.pids[name] != before, f"another {name}")


def send_until_acknowledged(settings: Settings, dataset: Any) -> None:
    wait_for(lambda: send(settings, dataset) == [0x0000], "an acknowledgement", 120)


def assert_each_once(pacs: Pacs, datasets: list[Any]) -> None:
    """Every output is at the PACS, and none with two contents, however often it was sent."""
    expected = {output_uid(d.SOPInstanceUID, kind) for d in datasets for kind in ("seg", "sc")}
    assert set(pacs.received) == expected
    assert [uid for uid, contents in pacs.received.items() if len(set(contents)) != 1] == []


def test_killed_in_the_middle_of_40_images(tmp_path, pacs, served):
    settings = service_settings(tmp_path, pacs)
    datasets = [radiograph() for _ in range(40)]
    service = served(settings)

    def feed() -> None:  # a sender that repeats what was not acknowledged
        for dataset in datasets:
            send_until_acknowledged(settings, dataset)

    sender = threading.Thread(target=feed)
    sender.start()
    for share in (8, 24, 48):
        wait_for(lambda share=share: len(pacs.received) >= share, "some results")
        children = service.children()
        assert len(children) == 3
        service.kill()
        service = served(settings)  # at once: port and lock are free
        assert not [pid for pid in children if alive(pid)]
    sender.join()
    wait_for(lambda: settled(settings), "the outputs")
    assert service.end() == 0
    assert_each_once(pacs, datasets)
    assert [item.state for item in instances(settings)] == ["done"] * 40
    log = service.log.read_text()
    assert PATIENT not in log
    assert datasets[0].SOPInstanceUID not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_cleanly_when_asked(tmp_path, served, number):
    settings = service_settings(tmp_path)
    service = served(settings)
    children = service.children()
    assert send(settings, *[radiograph() for _ in range(5)]) == [0x0000] * 5
    assert service.end(number) == 0
    assert not [pid for pid in children if alive(pid)]
    with socket.create_server(("127.0.0.1", settings.listener.port)):
        pass
    with running(settings):  # what was acknowledged is done by the next
        wait_for(lambda: settled(settings), "the outputs")
    assert [item.state for item in instances(settings)] == ["done"] * 5


def test_an_open_association_does_not_delay_the_end(tmp_path, served):
    settings = service_settings(tmp_path)
    service = served(settings)
    with socket.create_connection(("127.0.0.1", settings.listener.port)):
        ae = AE()
        ae.add_requested_context(Verification)
        association = ae.associate("127.0.0.1", settings.listener.port, ae_title="NEMT")
        assert association.is_established
        assert service.end() == 0
        association.abort()


def test_second_service_on_the_same_state(tmp_path, served):
    settings = service_settings(tmp_path)
    service = served(settings)
    assert service.process is not None
    other = service_settings(tmp_path)
    with pytest.raises(StateInUse, match=f"process {service.process.pid}"), running(other):
        pass
    assert answers(settings)


def test_port_in_use_is_said(tmp_path):
    settings = service_settings(tmp_path)
    with (
        socket.create_server(("127.0.0.1", settings.listener.port)),
        pytest.raises(StateError, match=f"port {settings.listener.port}: Address already in use"),
        running(settings),
    ):
        pass


def broken_engine(_settings: Settings) -> StandInEngine:
    raise BundleError("model.safetensors is damaged")


def test_a_bad_bundle_opens_no_port(tmp_path):
    settings = service_settings(tmp_path)
    with pytest.raises(BundleError, match="is damaged"), start_service(settings, broken_engine):
        pass
    with socket.create_server(("127.0.0.1", settings.listener.port)):
        pass


def test_damaged_state_is_said(tmp_path):
    settings = service_settings(tmp_path)
    with running(settings):
        pass
    (settings.state.dir / "store.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StateError, match=r"store\.db"), running(settings):
        pass


@pytest.mark.parametrize("how", ["missing", "empty", "older", "without its log"])
def test_acknowledged_images_survive_a_lost_database(tmp_path, pacs, served, how):
    """Whatever became of the database: what was acknowledged is in the spool."""
    settings = service_settings(tmp_path, pacs)
    datasets = [radiograph() for _ in range(6)]
    state = settings.state.dir
    service = served(settings)
    assert send(settings, datasets[0]) == [0x0000]
    wait_for(lambda: settled(settings), "the first outputs")
    received = [item.received for item in instances(settings)]
    if how == "older":
        assert service.end() == 0
        shutil.copy(state / "store.db", tmp_path / "backup")
        service = served(settings)
    worker = next(pid for pid in service.children() if b"nemt-dicom-worker" in cmdline(pid))
    os.kill(worker, signal.SIGSTOP)
    assert send(settings, *datasets[1:]) == [0x0000] * 5
    service.kill()
    lost = {"missing": "store.db*", "empty": "store.db*", "older": "store.db*"}
    for file in state.glob(lost.get(how, "store.db-*")):
        file.unlink()
    if how == "empty":
        (state / "store.db").touch()
    elif how == "older":
        shutil.copy(tmp_path / "backup", state / "store.db")

    service = served(settings)
    wait_for(lambda: settled(settings), "the outputs")
    found = {item.sop_instance_uid: item for item in instances(settings)}
    assert {item.state for item in found.values()} == {"done"}
    assert set(found) == {dataset.SOPInstanceUID for dataset in datasets}
    assert abs(found[datasets[0].SOPInstanceUID].received - received[0]).total_seconds() < 1
    expected = {output_uid(d.SOPInstanceUID, kind) for d in datasets for kind in ("seg", "sc")}
    assert set(pacs.received) == expected
    log = service.log.read_text()
    assert f"did not know of {5 if how == 'older' else 6} received images" in log
    assert PATIENT not in log
    assert send(settings, *datasets) == [0x0000] * 6
    assert service.end() == 0
    assert [item.duplicates for item in instances(settings)] == [1] * 6


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@dataclass
class Mended(StandInEngine):
    """Fails on nothing."""

    def explain(self, sources: Any) -> list[Any]:
        for source in sources:
            source.SeriesDescription = ""
        return super().explain(sources)


def test_what_is_dead_is_tried_again_when_it_is_sent_again_or_asked_for(tmp_path, capsys):
    settings = service_settings(tmp_path)
    datasets = [radiograph(behaviour="error") for _ in range(3)]
    with running(settings):
        assert send(settings, *datasets) == [0x0000] * 3
        wait_for(lambda: [i.state for i in instances(settings)] == ["dead"] * 3, "their end")
    with start_service(settings, Mended):
        assert send(settings, datasets[0]) == [0x0000]
        wait_for(lambda: instances(settings)[0].state == "done", "the one sent again")
        assert [item.state for item in instances(settings)] == ["done", "dead", "dead"]
        config = tmp_path / "nemt.toml"
        config.write_text(
            f"[state]\ndir = '{settings.state.dir}'\n"
            f"[[destinations]]\nname = 'results'\nkind = 'folder'\npath = '{tmp_path}/results'\n"
        )
        name = instance_name(datasets[1].SOPInstanceUID)
        assert cli.main(["jobs", "retry", name, "--config", str(config)]) == 0
        wait_for(lambda: instances(settings)[1].state == "done", "the one asked for")
        assert instances(settings)[2].state == "dead"
        assert cli.main(["jobs", "retry", "--all", "--config", str(config)]) == 0
        wait_for(lambda: settled(settings) and instances(settings)[2].state == "done", "the last")
    assert capsys.readouterr().out.count("instances queued again: 1\n") == 2


def test_results_that_the_disk_has_lost_are_made_again(tmp_path, capsys):
    pacs = Pacs(free_port())
    settings = service_settings(tmp_path, pacs)
    settings = settings.model_copy(update={"destinations": settings.destinations[1:]})
    datasets = [radiograph() for _ in range(3)]
    with running(settings):
        assert send(settings, *datasets) == [0x0000] * 3
        wait_for(lambda: [i.state for i in instances(settings)] == ["done"] * 3, "the outputs")
    spool = Spool(settings.state.dir, process="test")
    received = {item.blob for item in instances(settings)}
    with closing(Store(settings.state.dir)) as store:
        results = sorted(store.blobs() - received)
    for number, blob in enumerate(results[:4]):
        if number % 2:
            spool.path(blob).write_bytes(b"damaged")
        else:
            spool.path(blob).unlink()
    config = tmp_path / "nemt.toml"
    config.write_text(
        f"[state]\ndir = '{settings.state.dir}'\n[[destinations]]\nkind = 'dicom'\nname = 'pacs'\n"
        f"host = '127.0.0.1'\nport = {pacs.port}\nae_title = 'PACS'\n"
    )
    with running(settings), pacs.running():
        wait_for(lambda: dead_deliveries(settings) == 4, "four dead letters")
        assert cli.main(["jobs", "retry", "--all", "--config", str(config)]) == 0
        wait_for(lambda: settled(settings) and not dead_deliveries(settings), "the results")
        assert_each_once(pacs, datasets)
        assert "their results were lost: " in capsys.readouterr().out
        (gone,) = [
            i for i in instances(settings) if i.sop_instance_uid == datasets[0].SOPInstanceUID
        ]
        result = next(d.output_uid for d in gone.deliveries)
        with closing(Store(settings.state.dir)) as store:
            blobs = store.blobs() - received
            store._db.execute("UPDATE deliveries SET state = 'dead' WHERE output = ?", (result,))
        for blob in (*blobs, gone.blob):
            spool.path(blob).unlink()
        assert cli.main(["jobs", "retry", "--all", "--config", str(config)]) == 0
        assert "lost with their images, for good: 1" in capsys.readouterr().out
        wait_for(lambda: dead_deliveries(settings) == 1, "the dead letter")
        assert {item.state for item in instances(settings)} == {"done"}


def dead_deliveries(settings: Settings) -> int:
    return sum(d.state == "dead" for item in instances(settings) for d in item.deliveries)


def strike_of_an_end(settings: Settings, end: Callable[[], None]) -> list[bool]:
    """What a watched child is told of how the one before ended, start by start."""
    told: list[bool] = []

    def work(crashed: bool) -> Any:
        told.append(crashed)
        return partial(end_so, end=end)

    watched = _Watched("test", settings, work)
    watched.start()
    try:
        wait_for(lambda: watched.look() or len(told) == 2, "another child")
    finally:
        watched.child.kill()
        watched.child.close()
    return told


def end_so(_settings: Settings, life: Life, *, end: Callable[[], None]) -> None:
    life.ready({})
    end()


def by_state_error() -> None:
    raise StateError("store.db is damaged")


def by_bug() -> None:
    raise RuntimeError


def by_signal() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("end", "crashed"),
    [
        (by_state_error, False),
        (by_bug, False),
        (by_signal, True),
        (partial(os._exit, 139), True),
    ],
)
def test_only_a_crash_is_held_against_an_image(tmp_path, end, crashed):
    settings = service_settings(tmp_path)
    settings.state.dir.mkdir()
    assert strike_of_an_end(settings, end) == [False, crashed]


def test_outputs_for_a_destination_that_is_gone_are_named(tmp_path, caplog):
    settings = service_settings(tmp_path, Pacs(free_port()))  # nobody listens there
    with running(settings):
        assert send(settings, radiograph()) == [0x0000]
        wait_for(lambda: [i.state for i in instances(settings)] == ["done"], "the outputs")
    with running(settings):
        pass
    assert "is not configured" not in caplog.text
    with running(service_settings(tmp_path)):
        pass
    assert "2 outputs wait for destination pacs, which is not configured" in caplog.text
    assert "jobs retry --all" in caplog.text


def test_too_little_free_space_is_said_at_the_start(tmp_path, caplog):
    settings = service_settings(tmp_path)
    with running(settings):
        pass
    assert "free space" not in caplog.text
    scarce = settings.listener.model_copy(update={"min_free_mb": 10**9})
    settings = settings.model_copy(update={"listener": scarce})
    with running(settings):
        assert send(settings, radiograph()) == [0xA700]
    (record,) = [r for r in caplog.records if "free space" in r.getMessage()]
    assert record.levelname == "ERROR"
    assert str(settings.state.dir) in record.getMessage()
    assert "listener.min_free_mb = 1000000000" in record.getMessage()


def wait_for_ever(_settings: Settings, life: Life) -> None:
    life.ready({})
    threading.Event().wait()


def test_a_child_ends_when_its_parent_is_gone(tmp_path):
    """Where no signal of the kernel tells it, the end of its standard input does."""
    settings = service_settings(tmp_path)
    settings.state.dir.mkdir()
    child = Child("test", settings)
    child.start(wait_for_ever)
    wait_for(lambda: child.poll() is not None or child.report, "the child")
    assert child.poll() is None
    child.close()
    wait_for(lambda: child.poll() is not None, "the end of the child")


def test_work_that_cannot_be_pickled_leaves_no_process(tmp_path):
    child = Child("test", service_settings(tmp_path))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        child.start(lambda _settings, _life: None)
    assert child._process is None


def fail_at_work(_settings: Settings, life: Life) -> None:
    life.ready({"device": "none"})
    raise StateError("store.db is damaged: " + "\u00e4\u0000" * 3000)


@pytest.mark.parametrize("looks", ["often", "once"])
def test_a_child_that_fails_later_says_why(tmp_path, looks):
    """Both reports are read, whether or not they come together."""
    settings = service_settings(tmp_path)
    settings.state.dir.mkdir()
    child = Child("test", settings)
    child.start(fail_at_work)
    if looks == "often":
        wait_for(lambda: child.poll() is not None, "the end of the child")
    else:
        child._process.wait()
        child.poll()
    assert child.report.ready == {"device": "none"}
    assert child.report.failure.startswith("store.db is damaged")
    assert child.report.kind == "StateError"
    child.close()


def test_conflicting_content_is_held(tmp_path, pacs):
    settings = service_settings(tmp_path, pacs)
    uid = generate_uid()
    with running(settings):
        for _ in range(2):  # random pixels: the contents differ
            assert send(settings, radiograph(uid=uid)) == [0x0000]
        wait_for(lambda: settled(settings), "the outputs")
    assert [item.state for item in instances(settings)] == ["done", "conflict"]
    assert len(pacs.received) == 2
