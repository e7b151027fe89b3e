"""The sending process: one queue for each destination. No queue waits for another.

Every attempt sends the stored bytes, and only if they are undamaged. A destination that cannot be
reached is tried for ever, with growing random pauses and one output as the probe. An output that
the destination does not take is tried again, while other outputs flow on: for ever if the
destination has no room or is not configured for it, and until it is a dead letter if the
destination rejects the object itself.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial

from nemt_dicom.config import DeliverySettings, DicomDestination, FolderDestination, Settings
from nemt_dicom.errors import DamagedBlob, StateError
from nemt_dicom.log import describe_error, instance_name
from nemt_dicom.service.child import Life
from nemt_dicom.service.dicom_sender import DicomSender
from nemt_dicom.service.folder_sender import FolderSender
from nemt_dicom.service.pynetdicom_patches import configure_sending
from nemt_dicom.service.sender import Answer, Outcome, Sender
from nemt_dicom.state.records import Output, Parcel
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store

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
        self._failures = 0  # attempts in a row in which the destination was not there

    def run(self, stop: threading.Event) -> None:
        """Sends what is due until `stop` is set."""
        while not stop.is_set():
            try:
                version = self._store.data_version()  # before looking: nothing slips in between
                pause = self.step()
                if pause is None:
                    self._wait_for_work(stop, version)
                    continue
            except OSError as error:  # of our disk: the same bytes are sent again later
                LOGGER.error("delivery to %s: %s", self.name, describe_error(error))
                pause = self._settings.retry_first_s
            if pause > 0:
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
        return self._settle(parcel, self._attempt(parcel.output))

    def _attempt(self, output: Output) -> Outcome:
        try:
            data = self._spool.read(output.blob)
        except FileNotFoundError:
            if not self._spool.holds_anything():
                return Outcome(answer=Answer.LATER, detail="the spool is empty; is it mounted?")
            return Outcome(answer=Answer.LOST, detail="its bytes are missing in the spool")
        except DamagedBlob as error:
            return Outcome(answer=Answer.LOST, detail=str(error))
        except OSError as error:
            detail = f"its bytes cannot be read: {error.strerror}"
            return Outcome(answer=Answer.LATER, detail=detail)
        try:
            return self._sender.send(output, data)
        except Exception as error:  # noqa: BLE001 (one output must not hold up the others)
            return Outcome(answer=Answer.LATER, detail=describe_error(error))

    def _settle(self, parcel: Parcel, outcome: Outcome) -> float:
        self._log(parcel, outcome)
        if outcome.answer is Answer.UNREACHABLE:
            # It says nothing about the output: that stays first, as the probe.
            self._failures += 1
            self._postpone(parcel, outcome, 0)
            return self.backoff(self._failures - 1)
        self._failures = 0
        if outcome.answer is Answer.SENT:
            self._store.sent(parcel, status=outcome.status, detail=_kept(outcome) or None)
        elif self._is_final(parcel, outcome):
            self._store.give_up(parcel, status=outcome.status, detail=_kept(outcome))
        elif outcome.answer is Answer.REJECTED:
            self._postpone(parcel, outcome, self.rejection_pause(parcel.rejections))
        else:
            self._postpone(parcel, outcome, self.backoff(parcel.attempts))
            return self.backoff(0)  # gentle to the destination; other outputs hardly wait
        return 0

    def _is_final(self, parcel: Parcel, outcome: Outcome) -> bool:
        """Whether the delivery ends as a dead letter."""
        rejected = outcome.answer is Answer.REJECTED
        return outcome.answer is Answer.LOST or (
            rejected and parcel.rejections + 1 >= self._settings.max_rejections
        )

    def _log(self, parcel: Parcel, outcome: Outcome) -> None:
        output = f"{parcel.output.kind} {instance_name(parcel.output.sop_instance_uid)}"
        words = (outcome.answer.name.lower(), outcome.status, outcome.detail)
        what = f"{output} of instance {instance_name(parcel.source)} to {self.name}"
        text = f"{what}: {' '.join(word for word in words if word)}"
        if self._is_final(parcel, outcome):
            LOGGER.error("%s; it is a dead letter, `nemt-dicom jobs retry` tries again", text)
        else:
            LOGGER.log(
                logging.INFO if outcome.answer is Answer.SENT else logging.WARNING, "%s", text
            )

    def _postpone(self, parcel: Parcel, outcome: Outcome, pause: float) -> None:
        self._store.postpone(
            parcel,
            status=outcome.status,
            detail=_kept(outcome),
            retry_at=time.time() + pause if pause else 0,
            rejected=outcome.answer is Answer.REJECTED,
        )

    def rejection_pause(self, rejections: int) -> float:
        """Seconds to wait after a rejection and `rejections` earlier ones.

        Short once, then long: the destination may be at fault, and a dead letter is final.
        """
        longest = self._settings.retry_longest_s
        pause = longest if rejections else min(longest, self._settings.retry_first_s)
        return pause * random.uniform(0.8, 1)  # noqa: S311 (no secret)

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


def _kept(outcome: Outcome) -> str:
    """The text of an outcome for the database: our words, then the peer's."""
    return ": ".join(text for text in (outcome.detail, outcome.comment) if text)


def make_sender(
    destination: DicomDestination | FolderDestination,
    settings: Settings,
    syntaxes: Callable[[], list[tuple[str, str]]],
) -> Sender:
    """The sender for a destination's kind."""
    if isinstance(destination, FolderDestination):
        return FolderSender(destination, make=destination.path == settings.own_results)
    return DicomSender(destination, settings.delivery, syntaxes)


def run_delivery(settings: Settings, life: Life) -> None:
    """Runs the delivery process until it is told to stop.

    Raises `StateError` if the database cannot be used or a courier ended by itself.
    """
    configure_sending()
    store = Store(settings.state.dir)
    spool = Spool(settings.state.dir, process="delivery")
    threads = []
    for destination in settings.resolved_destinations():
        syntaxes = partial(store.pending_syntaxes, destination.name)
        sender = make_sender(destination, settings, syntaxes)
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
