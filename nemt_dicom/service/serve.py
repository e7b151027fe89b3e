"""The service: starts listener, worker and delivery, and watches them until it is told to stop.

A process that ends is started again. None of them outlives this one (child.py).
"""

import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nemt_dicom import errors
from nemt_dicom.config import Settings
from nemt_dicom.errors import NemtError, StateError
from nemt_dicom.log import configure_logging
from nemt_dicom.service.child import Child, Report, Work
from nemt_dicom.service.delivery import run_delivery
from nemt_dicom.service.listener import run_listener
from nemt_dicom.service.receiver import Receiver
from nemt_dicom.service.worker import run_worker
from nemt_dicom.state.spool import Spool, StateLock, prepare_state_dir
from nemt_dicom.state.store import Store

if TYPE_CHECKING:
    from nemt_dicom.pipeline import Engine, EngineFactory

LOGGER = logging.getLogger(__name__)

POLL = 0.05  # seconds between looks at the children
STEADY = 10.0  # seconds after which a child's earlier ends are forgotten
LONGEST_PAUSE = 1.0  # seconds before a child that ends again and again is started again
ENDED_BY_ITSELF = frozenset({0, 1})  # exit codes: told to, or with an error; any other is a crash
STOP_PATIENCE = 10.0  # seconds for the children to end by themselves


def pipeline_engine(settings: Settings) -> "Engine":
    """The real engine. Only the worker process calls this, and so only it loads torch."""
    from nemt_dicom.pipeline import PipelineEngine  # noqa: PLC0415

    return PipelineEngine(settings)


@dataclass(frozen=True, kw_only=True)
class ServiceInfo:
    """The description of a running service, for people.

    ae_title: of the listener.
    host: address that the listener is bound to.
    port: of the listener.
    device: processor of the worker.
    bundle: name, version and digest of the model bundle.
    destinations: names of the configured destinations.
    state_dir: the state folder.
    """

    ae_title: str
    host: str
    port: int
    device: str
    bundle: str
    destinations: tuple[str, ...]
    state_dir: Path

    def __str__(self) -> str:
        return (
            f"{self.ae_title} listens on {self.host} port {self.port}; "
            f"bundle {self.bundle} on {self.device}; "
            f"results to {', '.join(self.destinations)}; state in {self.state_dir}"
        )


class _Watched:
    """One child and how often it has ended lately."""

    def __init__(self, name: str, settings: Settings, work: Callable[[bool], Work]) -> None:
        """`work` makes the work, from whether the child before it crashed."""
        self.child = Child(name, settings)
        self._work = work
        self._crashed = False
        self._ends = 0
        self._started = 0.0
        self._start_at: float | None = None

    def start(self) -> None:
        self._start_at = None
        self._started = time.monotonic()
        self.child.start(self._work(self._crashed))

    def look(self) -> None:
        """Starts the child again if it has ended, after a pause if it ends again and again."""
        now = time.monotonic()
        if self._start_at is None:
            code = self.child.poll()
            if code is None:
                return
            report = self.child.report or Report()
            LOGGER.error(
                "%s ended (%s), starting it again", self.child.name, report.failure or code
            )
            # One that was not ready yet has not made up for the crash before it.
            unanswered = self._crashed and report.ready is None
            self._crashed = unanswered or code not in ENDED_BY_ITSELF
            self._ends = 0 if now - self._started > STEADY else self._ends + 1
            self._start_at = now + min(LONGEST_PAUSE, 0.25 * self._ends)
        if now >= self._start_at:
            try:
                self.start()
            except OSError as error:  # no memory or no process to be had: tried again
                LOGGER.error("%s cannot be started: %s", self.child.name, error.strerror)
                self._start_at = now + LONGEST_PAUSE


class Service:
    """The three processes on one state folder.

    `start`, `watch` and `stop` belong to one thread, which must live as long as the service.
    """

    def __init__(self, settings: Settings, engine: "EngineFactory" = pipeline_engine) -> None:
        self._settings = settings
        self._resources = ExitStack()
        self._stopping = False
        self._listener = _Watched("listener", settings, lambda _crashed: run_listener)
        self._delivery = _Watched("delivery", settings, lambda _crashed: run_delivery)
        self._worker = _Watched(
            "worker", settings, lambda crashed: partial(run_worker, crashed=crashed, engine=engine)
        )
        self._running: list[_Watched] = []

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {watched.child.name: watched.child.pid for watched in self._running}

    def ask_to_stop(self) -> None:
        """Ends `start` and `watch` soon. May be called from a signal handler or another thread."""
        self._stopping = True

    def start(self) -> ServiceInfo | None:
        """Starts everything; the port opens last, when all else is ready. None: told to stop.

        Raises `StateInUse`, `StateError`, or the `NemtError` that a child could not start for.
        """
        state_dir = self._settings.state.dir
        prepare_state_dir(state_dir)
        try:
            self._resources.enter_context(StateLock(state_dir))
            self._open_state(state_dir)
        except OSError as error:
            raise StateError(f"state folder {state_dir}: {error.strerror}") from error
        for watched in (self._worker, self._delivery):
            self._begin(watched)
        for watched in (self._worker, self._delivery):
            self._await_ready(watched)
        if not self._stopping:
            self._begin(self._listener)
            self._await_ready(self._listener)
        return None if self._stopping else self._info()

    def watch(self) -> None:
        """Keeps the children running until asked to stop."""
        while not self._stopping:
            for watched in self._running:
                watched.look()
            time.sleep(POLL)

    def stop(self) -> None:
        """Ends all children, by force if they take too long, and gives the state folder back."""
        for watched in self._running:
            watched.child.terminate()
        deadline = time.monotonic() + STOP_PATIENCE
        while any(watched.child.poll() is None for watched in self._running):
            if time.monotonic() > deadline:
                LOGGER.warning("children do not end by themselves and are killed")
                break
            time.sleep(0.02)
        for watched in self._running:
            watched.child.kill()
            watched.child.close()
        self._running.clear()
        self._resources.close()

    def _open_state(self, state_dir: Path) -> None:
        store = Store(state_dir)
        try:
            store.check_integrity()
            self._tidy_spool(Spool(state_dir, process="serve"), store)
            self._warn_of_stranded(store)
        finally:
            store.close()

    def _tidy_spool(self, spool: Spool, store: Store) -> None:
        """Takes back images that the database does not know, and removes unfinished files."""
        receiver = Receiver(self._settings, spool, store)
        known = store.blobs()
        removed = spool.sweep(known, receiver.take_back)
        taken_back = len(store.blobs() - known)
        if taken_back:
            LOGGER.warning(
                "%s did not know of %d received images in the spool: they are taken back",
                store.path,
                taken_back,
            )
        if removed:
            LOGGER.info("removed %d files of operations that were cut off", removed)
        if receiver.too_full():
            LOGGER.error(
                "%s has %d MB of free space, less than listener.min_free_mb = %d: every image is "
                "refused until there is more",
                spool.root,
                spool.free_bytes() // 1_000_000,
                self._settings.listener.min_free_mb,
            )

    def _warn_of_stranded(self, store: Store) -> None:
        """Names destinations that outputs wait for and that are not configured any more."""
        configured = {item.name for item in self._settings.resolved_destinations()}
        for name, count in store.pending_by_destination().items():
            if name not in configured:
                LOGGER.warning(
                    "%d outputs wait for destination %s, which is not configured; "
                    "nemt-dicom jobs retry --all sends them to those that are",
                    count,
                    name,
                )

    def _begin(self, watched: _Watched) -> None:
        watched.start()
        self._running.append(watched)

    def _await_ready(self, watched: _Watched) -> None:
        child = watched.child
        while not self._stopping:
            code = child.poll()
            if child.report is not None and child.report.failure is not None:
                raise _as_error(child.report.kind)(child.report.failure)
            if child.report is not None:
                return
            if code is not None:
                raise NemtError(f"the {child.name} ended at its start ({code}); see the log")
            time.sleep(0.02)

    def _info(self) -> ServiceInfo:
        report = self._worker.child.report
        assert report is not None
        assert report.ready is not None
        listener = self._settings.listener
        return ServiceInfo(
            ae_title=listener.ae_title,
            host=listener.host,
            port=listener.port,
            device=report.ready["device"],
            bundle=report.ready["bundle"],
            destinations=tuple(item.name for item in self._settings.resolved_destinations()),
            state_dir=self._settings.state.dir,
        )


def _as_error(kind: str) -> type[NemtError]:
    error = getattr(errors, kind, NemtError)
    return error if isinstance(error, type) and issubclass(error, NemtError) else NemtError


def serve(
    settings: Settings,
    *,
    on_ready: Callable[[ServiceInfo], None] | None = None,
    engine: "EngineFactory" = pipeline_engine,
) -> int:
    """Runs the service until SIGTERM or SIGINT; returns 0 then. Call it in the main thread.

    Raises `NemtError` if it cannot start: `StateInUse`, `StateError`, `BundleError`.
    """
    configure_logging(settings.log.level)
    service = Service(settings, engine)
    before = {
        number: signal.signal(number, lambda _number, _frame: service.ask_to_stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        info = service.start()
        if info is not None:
            LOGGER.info("ready: %s", info)
            if on_ready is not None:
                on_ready(info)
            service.watch()
        LOGGER.info("stopping")
    finally:
        service.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
