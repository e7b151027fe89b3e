"""The sending process: one queue for each destination, none waiting for another.

What is sent are the stored bytes, every time. A destination that cannot be reached is tried for
ever, one output as the probe, with growing random pauses; an output that it rejects becomes a dead
letter after a few attempts while the others flow on.
"""

import logging
import random
import threading
import time
from functools import partial

from nemt_dicom.child import Life
from nemt_dicom.config import DeliverySettings, Settings
from nemt_dicom.errors import StateError
from nemt_dicom.log import describe_error, instance_name
from nemt_dicom.records import Parcel
from nemt_dicom.sender import Answer, Outcome, Sender, configure_libraries, make_sender
from nemt_dicom.spool import Spool
from nemt_dicom.store import Store

LOGGER = logging.getLogger(__name__)

POLL = 0.05  # seconds between looks at the database while idle; each costs 3 us
STOP_PATIENCE = 5.0  # seconds for a C-STORE under way to end
REQUERY = 0.25  # seconds after which retries that have become due are looked for


class Courier:
    """Empties the queue of one destination."""

    def __init__(
        self, name: str, sender: Sender, *, settings: DeliverySettings, spool: Spool, store: Store
    ) -> None:
        self.name = name
        self._sender = sender
        self._settings = settings
        self._spool = spool
        self._store = store
        self._failures = 0  # attempts in a row that the destination has not answered

    def run(self, stop: threading.Event) -> None:
        """Sends what is due until `stop` is set."""
        while not stop.is_set():
            version = self._store.data_version()  # before looking: nothing slips in between
            try:
                pause = self.step()
            except OSError as error:  # of our own disk: sent again later, the same bytes
                LOGGER.error("delivery to %s: %s", self.name, describe_error(error))
                pause = self._settings.retry_first_s
            if pause is None:
                self._wait_for_work(stop, version)
            elif pause > 0:
                self._sender.close()
                stop.wait(pause)
        self._sender.close()

    def step(self) -> float | None:
        """Sends one output. Returns the seconds to wait before the next; None: nothing is due."""
        parcel = self._store.due(
            self.name, now=time.time(), longest_wait=self._settings.retry_longest_s
        )
        if parcel is None:
            return None
        path = self._spool.path(parcel.output.blob)
        if path.exists():
            outcome = self._sender.send(parcel.output, path)
        else:
            outcome = Outcome(answer=Answer.REJECTED, detail="its bytes are missing in the spool")
        return self._settle(parcel, outcome)

    def _settle(self, parcel: Parcel, outcome: Outcome) -> float:
        name = instance_name(parcel.output.sop_instance_uid)
        status, detail = outcome.status, outcome.detail or ""
        LOGGER.log(
            logging.INFO if outcome.answer is Answer.SENT else logging.WARNING,
            "%s %s to %s: %s %s",
            parcel.output.kind,
            name,
            self.name,
            outcome.answer.name.lower(),
            status or "",
        )
        if outcome.answer is Answer.SENT:
            self._failures = 0
            self._store.sent(parcel, status=status, detail=outcome.detail)
            return 0
        if outcome.answer is Answer.REJECTED:
            self._failures = 0
            if parcel.rejections + 1 >= self._settings.max_rejections:
                self._store.give_up(parcel, status=status, detail=detail)
            else:
                self._postpone(parcel, outcome, self.backoff(parcel.rejections))
            return 0
        self._failures += 1
        # A destination that is away says nothing about the output: it stays first, as the probe.
        away = outcome.answer is Answer.UNREACHABLE
        self._postpone(parcel, outcome, 0 if away else self.backoff(parcel.attempts))
        return self.backoff(self._failures - 1)

    def _postpone(self, parcel: Parcel, outcome: Outcome, pause: float) -> None:
        self._store.postpone(
            parcel,
            status=outcome.status,
            detail=outcome.detail or "",
            retry_at=time.time() + pause if pause else 0,
            rejected=outcome.answer is Answer.REJECTED,
        )

    def backoff(self, failures: int) -> float:
        """Seconds to wait after `failures` earlier ones: growing, with full jitter."""
        longest = self._settings.retry_longest_s
        growing = self._settings.retry_first_s * 2.0 ** min(failures, 30)
        return random.uniform(0, min(longest, growing))  # noqa: S311 (no secret)

    def _wait_for_work(self, stop: threading.Event, version: int) -> None:
        deadline = time.monotonic() + REQUERY
        while time.monotonic() < deadline and self._store.data_version() == version:
            self._sender.idle()
            if stop.wait(POLL):
                return


def run_delivery(settings: Settings, life: Life) -> None:
    """The delivery process, until it is told to stop."""
    configure_libraries()
    store = Store(settings.state.dir)
    spool = Spool(settings.state.dir, process="delivery")
    threads = []
    for destination in settings.resolved_destinations():
        syntaxes = partial(store.pending_syntaxes, destination.name)
        sender = make_sender(destination, settings.delivery, syntaxes)
        courier = Courier(
            destination.name, sender, settings=settings.delivery, spool=spool, store=store
        )
        thread = threading.Thread(target=courier.run, args=(life.stop,), name=courier.name)
        thread.daemon = True
        thread.start()
        threads.append(thread)
    life.ready({})
    while not life.stop.wait(0.2):
        for thread in threads:
            if not thread.is_alive():
                raise StateError(f"delivery to {thread.name} ended by itself")
    for thread in threads:
        thread.join(STOP_PATIENCE)
    store.close()
