"""The explaining process: claim, read, explain, build, commit.

A batch takes the queued instances and never waits to be full. If anything goes wrong with a batch,
its instances run again one by one, so that none suffers for another.
"""

import errno
import logging
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from nemt_dicom.config import Settings
from nemt_dicom.errors import BadOutput, DamagedBlob, Refused
from nemt_dicom.log import describe_error, instance_name
from nemt_dicom.service.child import Life
from nemt_dicom.state.records import DeadReason, Instance
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store

if TYPE_CHECKING:  # the engine loads torch, and serve imports this file without it
    from nemt_dicom.pipeline import Engine, EngineFactory, Source

LOGGER = logging.getLogger(__name__)

POLL = 0.05  # seconds between looks at the database while idle; each costs 3 us
NO_ROOM_PAUSE = 5.0  # seconds before trying again on a full or failing disk
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EBUSY})
FAILING = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV})


class Worker:
    """Explains queued instances. `lease` marks the rows that this process holds."""

    def __init__(
        self,
        settings: Settings,
        engine: "Engine",
        spool: Spool,
        store: Store,
        *,
        retry_s: float = NO_ROOM_PAUSE,
    ) -> None:
        """`retry_s`: seconds before a full or failing disk is tried again."""
        self._retry_s = retry_s
        self._engine = engine
        self._spool = spool
        self._store = store
        self._limit = settings.explanation.max_batch
        self._destinations = [item.name for item in settings.resolved_destinations()]
        self.lease = uuid.uuid4().hex
        self._stranded = False  # claimed, and there was no room to go on
        self._unreadable: set[int] = set()  # instances that the disk failed on: tried last

    def run(self, life: Life) -> None:
        """Works until `life.stop` is set, then puts back unfinished instances.

        A full or failing disk or a locked database gives no instance a strike. Claimed instances
        are put back as soon as there is room for that, and run again.
        """
        while not life.stop.is_set():
            try:
                if self._stranded:
                    self._store.release(self.lease)
                    self._stranded = False
                self._work(life)
            except OSError as error:
                what = error.strerror or describe_error(error)
                LOGGER.error("the state folder cannot be used, trying again: %s", what)
                self._stranded = True
                life.stop.wait(self._retry_s)
        with suppress(OSError):  # what stays claimed is put back at the next start
            self._store.release(self.lease)

    def _work(self, life: Life) -> None:
        """Runs queued instances, or waits until there are some."""
        version = self._store.data_version()  # before looking: nothing slips in between
        batch = self._store.claim(self.lease, self._limit, self._unreadable)
        if not batch and self._unreadable:
            self._unreadable.clear()
            batch = self._store.claim(self.lease, self._limit)
        if batch:
            self.attempt(batch)
            return
        while self._store.data_version() == version and not life.stop.wait(POLL):
            pass

    def attempt(self, batch: Sequence[Instance]) -> None:
        """Runs a claimed batch; every instance of it is ended or put back on return.

        Raises `OSError` if the disk is full or fails, which says nothing of the images. The batch
        is still claimed then.
        """
        alone = batch[0] if len(batch) == 1 else None
        try:
            self._explain(batch)
        except OSError as error:
            if error.errno in NO_ROOM | FAILING or not self._spool.holds_anything():
                raise
            self._failed(alone, DeadReason.FAILED, error)
        except BadOutput as error:
            self._failed(alone, DeadReason.BAD_OUTPUT, error)
        except Exception as error:  # noqa: BLE001 (one image must not end the service)
            self._failed(alone, DeadReason.FAILED, error)

    def _failed(self, alone: Instance | None, reason: DeadReason, error: Exception) -> None:
        what = describe_error(error)
        if alone is None:
            LOGGER.warning("a batch failed and is done again one by one: %s", what)
            self._store.release(self.lease, alone=True)
            return
        name = instance_name(alone.sop_instance_uid)
        LOGGER.error("failed instance %s: %s: %s", name, reason, what)
        if reason is DeadReason.BAD_OUTPUT:  # it would be the same again
            self._store.bury(self.lease, alone.id, reason, what)
        else:
            self._store.fail(self.lease, alone.id, what)

    def _explain(self, batch: Sequence[Instance]) -> None:
        readable = [(i, *read) for i in batch if (read := self._read(i)) is not None]
        if not readable:
            return
        start = time.monotonic()
        explanations = self._engine.explain([source for _, source, _ in readable])
        explain_ms = _ms_since(start) / len(readable)
        for (instance, source, read_ms), explanation in zip(readable, explanations, strict=True):
            start = time.monotonic()
            outputs = self._engine.build(
                source,
                explanation,
                digest=instance.content_digest,
                received=instance.received,
            )
            summary = explanation.summary() | {
                "read_ms": read_ms,
                "explain_ms": round(explain_ms, 1),
                "build_ms": _ms_since(start),
                "batch": len(readable),
            }
            for output, data in outputs:
                self._spool.store(output.blob, data)
            self._store.complete(
                self.lease,
                instance.id,
                outputs=[output for output, _ in outputs],
                destinations=self._destinations,
                summary=summary,
            )
            name = instance_name(instance.sop_instance_uid)
            LOGGER.info("explained instance %s: %s", name, summary.get("verdict"))

    def _read(self, instance: Instance) -> "tuple[Source, float] | None":
        """The source and its time in milliseconds; None if the instance has ended here.

        Raises `OSError` if the disk fails.
        """
        assert instance.blob is not None, "only what was acknowledged is queued"
        start = time.monotonic()
        name = instance_name(instance.sop_instance_uid)
        try:
            source = self._engine.read(self._spool.read(instance.blob))
        except Refused as refusal:
            LOGGER.warning("refused instance %s: %s", name, refusal.reason)  # details quote it
            self._store.refuse(self.lease, instance.id, refusal.reason, refusal.detail)
            return None
        except DamagedBlob as damage:
            LOGGER.error("failed instance %s: %s", name, damage)
            self._store.bury(self.lease, instance.id, DeadReason.FAILED, str(damage))
            return None
        except OSError as error:
            LOGGER.error("cannot read instance %s: %s", name, error.strerror)
            self._unreadable.add(instance.id)
            raise
        return source, _ms_since(start)


def _ms_since(start: float) -> float:
    return round((time.monotonic() - start) * 1000, 1)


def run_worker(
    settings: Settings, life: Life, *, engine: "EngineFactory", crashed: bool = False
) -> None:
    """Runs the worker process until it is told to stop.

    engine: makes the engine, here in this process.
    crashed: whether the worker process before this one crashed.

    Raises `BundleError` if the model cannot be used. Nothing is claimed then.
    """
    ready_engine = engine(settings)
    spool = Spool(settings.state.dir, process="worker")
    spool.prepare()
    store = Store(settings.state.dir)
    store.recover(crashed=crashed)
    LOGGER.info("bundle %s on %s", ready_engine.bundle, ready_engine.device)
    life.ready({"device": ready_engine.device, "bundle": ready_engine.bundle})
    Worker(settings, ready_engine, spool, store).run(life)
    store.close()
