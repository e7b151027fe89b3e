"""The database: instances, outputs, deliveries. Every change of state is a method of `Store`.

    instance   queued -> inferring -> done | dead | refused; conflict and refused also on arrival
    output     a DICOM object whose bytes are in the spool; never changes
    delivery   pending -> sent | dead, one for each output and destination

What is dead is queued or pending again where it is sent again or an operator asks for it.

A change is one transaction that is on the disk when the method returns. Methods are safe to call
from several threads. A full or failing disk raises `OSError`, a damaged file `StateError`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemt_dicom.errors import Reason
from nemt_dicom.state import queries
from nemt_dicom.state.database import BUSY_MS, Database
from nemt_dicom.state.migrations import FUNCTIONS, STEPS
from nemt_dicom.state.records import (
    CONFLICT_REASON,
    Arrival,
    DeadReason,
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Output,
    Parcel,
    Receipt,
    Rejection,
    Retried,
)

MAX_STRIKES = 3  # runs alone that ended in a failure or a crash of the worker
MAX_INTERRUPTIONS = 10  # runs alone during which the whole service was killed


class Store:
    """One connection to the database of a state folder. Use one for each process."""

    def __init__(self, state_dir: Path, *, read_only: bool = False, busy_ms: int = BUSY_MS) -> None:
        """Opens the database, and creates it where it is missing unless `read_only`.

        Raises `StateError` where it is missing, damaged or written by a newer release.
        """
        self.path = state_dir / "store.db"
        self._db = Database(
            self.path,
            steps=STEPS,
            functions=FUNCTIONS,
            read_only=read_only,
            busy_ms=busy_ms,
        )

    def close(self) -> None:
        self._db.close()

    def check_integrity(self) -> None:
        """Raises `StateError` where the database file is damaged."""
        self._db.check_integrity()

    def data_version(self) -> int:
        """A number that changes when another connection has committed something. Costs 3 us."""
        return int(self._db.rows("PRAGMA data_version")[0][0])

    # Arrival, by the listener

    def receive(self, arrival: Arrival) -> Receipt:
        """Records an instance whose bytes are in the spool; durable on return.

        Where other content with the same UID is explained or waits for it, this is a conflict and
        is not explained. The same content is a duplicate and changes nothing, but what is dead, or
        in conflict with nothing any more, is queued again.
        """
        key = (arrival.sop_instance_uid, arrival.content_digest)
        with self._db.change():
            known = self._db.rows(queries.KNOWN, key)
            rival = bool(self._db.rows(queries.RIVAL, key))
            if known and known[0][1] is not None:
                instance, _, state = known[0]
                self._db.execute(queries.COUNT_DUPLICATE, (instance,))
                if state in {InstanceState.DEAD, InstanceState.CONFLICT} and not rival:
                    self._db.execute(queries.QUEUE_AGAIN, (arrival.blob, _now(), instance))
                return Receipt.DUPLICATE
            receipt = Receipt.CONFLICT if rival else Receipt.QUEUED
            self._add(
                arrival,
                state=InstanceState(receipt),
                received=arrival.received,
                blob=arrival.blob,
                reason=CONFLICT_REASON if receipt is Receipt.CONFLICT else None,
            )
        return receipt

    def knows(self, sop_instance_uid: str, content_digest: str) -> bool:
        """Whether this content was acknowledged before."""
        known = self._db.rows(queries.KNOWN, (sop_instance_uid, content_digest))
        return bool(known) and known[0][1] is not None

    def refuse_arrival(self, rejection: Rejection) -> None:
        """Records an instance refused on the wire. One that was acknowledged before stays."""
        key = (rejection.sop_instance_uid, rejection.content_digest)
        with self._db.change():
            known = self._db.rows(queries.KNOWN, key)
            if known:
                self._db.execute(queries.COUNT_DUPLICATE, (known[0][0],))
            else:
                self._add(
                    rejection,
                    state=InstanceState.REFUSED,
                    received=datetime.now(UTC),
                    reason=rejection.reason,
                    detail=rejection.detail,
                )

    def _add(
        self,
        instance: Arrival | Rejection,
        *,
        state: InstanceState,
        received: datetime,
        blob: str | None = None,
        reason: str | None = None,
        detail: str | None = None,
    ) -> None:
        uids = (instance.sop_instance_uid, instance.sop_class_uid, instance.content_digest)
        when = received.astimezone(UTC).isoformat()
        self._db.execute(queries.ADD_INSTANCE, (*uids, blob, state, reason, detail, when, when))

    # Explanation, by the worker. `lease` names the worker process; what another holds is not
    # touched, and the methods that end a run return False where the lease is lost.

    def recover(self, *, crashed: bool) -> None:
        """Puts back what an earlier worker held, to run alone. Call before the first `claim`.

        `crashed`: the worker crashed, so that an instance that ran alone has earned a strike.
        Otherwise the whole service was killed, or the worker ended with an error that is no
        image's, which is held against it far less.
        """
        with self._db.change():
            if not crashed:
                self._db.execute(queries.TAKE_BACK_INTERRUPTED)
            self._db.execute(queries.BURY_CRASHERS, (_now(), MAX_STRIKES, MAX_INTERRUPTIONS))
            self._db.execute(queries.RECOVER, (_now(),))

    def claim(self, lease: str, limit: int, without: Iterable[int] = ()) -> list[Instance]:
        """Takes up to `limit` queued instances, oldest first; those that must run alone first.
        Instances of `without` are passed over.

        The strike of an instance that runs alone is counted now: a crash leaves no time for it.
        """
        passed = json.dumps(list(without))
        with self._db.change():
            ids = self._db.rows(queries.NEXT_ALONE, (passed,)) or self._db.rows(
                queries.NEXT_BATCH, (passed, limit)
            )
            alone = int(len(ids) == 1)
            for (key,) in ids:
                self._db.execute(queries.TAKE, (lease, alone, _now(), key))
            return [self._instances("WHERE id = ?", row)[0] for row in ids]

    def complete(
        self,
        lease: str,
        instance: int,
        *,
        outputs: Sequence[Output],
        destinations: Sequence[str],
        summary: Mapping[str, Any],
    ) -> bool:
        """Ends a run with its outputs and their deliveries. What was sent anywhere stays; of an
        earlier run's outputs with other UIDs, nothing more is sent.
        """
        with self._db.change():
            if not self._end(lease, instance, InstanceState.DONE, summary=summary):
                return False
            for output in outputs:
                self._add_output(instance, output, destinations)
            kept = json.dumps([output.sop_instance_uid for output in outputs])
            self._db.execute(queries.DROP_SUPERSEDED, (instance, kept))
        return True

    def _add_output(self, instance: int, output: Output, destinations: Sequence[str]) -> None:
        uids = (output.sop_class_uid, output.study_instance_uid, output.transfer_syntax_uid)
        row = (output.sop_instance_uid, instance, output.kind, *uids, output.blob)
        self._db.execute(queries.ADD_OUTPUT, row)
        for name in destinations:
            self._db.execute(queries.ADD_DELIVERY, (output.sop_instance_uid, name, _now()))

    def refuse(self, lease: str, instance: int, reason: Reason, detail: str) -> bool:
        """Ends a run: this is no instance the service explains."""
        with self._db.change():
            return self._end(lease, instance, InstanceState.REFUSED, reason=reason, detail=detail)

    def bury(self, lease: str, instance: int, reason: DeadReason, detail: str) -> bool:
        """Ends a run as a dead letter."""
        with self._db.change():
            return self._end(lease, instance, InstanceState.DEAD, reason=reason, detail=detail)

    def fail(self, lease: str, instance: int, detail: str) -> bool:
        """Ends a run that failed with an error: queued again to run alone, dead at the limit.

        Call it only for an instance that ran alone, for no other has been given a strike.
        """
        with self._db.change():
            found = self._db.rows(queries.STRIKES, (instance, lease))
            if found and found[0][0] < MAX_STRIKES:
                row = (DeadReason.FAILED, detail, _now(), instance)
                return self._db.execute(queries.RETRY_ALONE, row) == 1
            return self._end(
                lease, instance, InstanceState.DEAD, reason=DeadReason.FAILED, detail=detail
            )

    def release(self, lease: str, *, alone: bool = False) -> None:
        """Puts back all that `lease` still holds, uncharged; `alone`: each to run alone."""
        with self._db.change():
            self._db.execute(queries.PUT_BACK, (int(alone), _now(), lease))

    def _end(
        self,
        lease: str,
        instance: int,
        state: InstanceState,
        *,
        reason: str | None = None,
        detail: str | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> bool:
        text = None if summary is None else json.dumps(summary, allow_nan=False)
        row = (state, reason, detail, text, _now(), instance, lease)
        return self._db.execute(queries.END, row) == 1

    # Delivery

    def due(self, destination: str, *, now: float, longest_wait: float) -> Parcel | None:
        """The next output to send to `destination`, or None. Times are seconds since 1970.

        A retry set further ahead than `longest_wait` comes from a clock that was wrong: it is due.
        """
        rows = self._db.rows(queries.DUE, (destination, now, now + longest_wait))
        if not rows:
            return None
        attempts, rejections, kind, sop_class, sop_instance, study, syntax, blob, source = rows[0]
        output = Output(
            kind=kind,
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            study_instance_uid=study,
            transfer_syntax_uid=syntax,
            blob=blob,
        )
        return Parcel(
            destination=destination,
            output=output,
            source=source,
            attempts=attempts,
            rejections=rejections,
        )

    def pending_syntaxes(self, destination: str) -> list[tuple[str, str]]:
        """SOP class and transfer syntax of what waits for `destination`, each pair once."""
        return [
            (str(sop_class), str(syntax))
            for sop_class, syntax in self._db.rows(queries.PENDING_SYNTAXES, (destination,))
        ]

    def sent(self, parcel: Parcel, *, status: str | None, detail: str | None = None) -> None:
        """Ends a delivery: the destination has the output."""
        self._mark(parcel, DeliveryState.SENT, status=status, detail=detail)

    def postpone(
        self, parcel: Parcel, *, status: str | None, detail: str, retry_at: float, rejected: bool
    ) -> None:
        """Leaves a delivery pending until `retry_at`; `rejected`: the destination said no."""
        self._mark(
            parcel,
            DeliveryState.PENDING,
            rejections=int(rejected),
            status=status,
            detail=detail,
            retry_at=retry_at,
        )

    def give_up(self, parcel: Parcel, *, status: str | None, detail: str) -> None:
        """Ends a delivery as a dead letter: the destination will not have the output."""
        self._mark(parcel, DeliveryState.DEAD, rejections=1, status=status, detail=detail)

    def _mark(
        self,
        parcel: Parcel,
        state: DeliveryState,
        *,
        status: str | None,
        detail: str | None,
        rejections: int = 0,
        retry_at: float = 0,
    ) -> None:
        key = (parcel.output.sop_instance_uid, parcel.destination)
        row = (state, rejections, status, detail, retry_at, _now(), *key)
        with self._db.change():
            self._db.execute(queries.MARK_DELIVERY, row)

    # Trying again, by an operator; the service may run meanwhile

    def given_up(self, uids: Sequence[str] | None) -> list[tuple[str, str]]:
        """Blobs of outputs that a destination will not have, of `uids` or of all instances; each
        with the blob of the image that it explains.
        """
        chosen = None if uids is None else json.dumps(list(uids))
        return [(str(own), str(image)) for own, image in self._db.rows(queries.GIVEN_UP, (chosen,))]

    def retry(
        self,
        uids: Sequence[str] | None,
        destinations: Sequence[str],
        lost: Iterable[str] = (),
    ) -> Retried:
        """Queues dead instances again, and sends their outputs again where that was given up.

        `uids`: SOP Instance UIDs, or None for all. Outputs get a delivery to each of
        `destinations`, those that are configured now; deliveries to others stay as they are. Of
        several dead instances with one UID the latest is queued. So are those that a result of is
        one of the blobs `lost`: its new bytes take their place, unless a destination has the old.
        """
        chosen = None if uids is None else json.dumps(list(uids))
        named = json.dumps(list(destinations))
        with self._db.change():
            dead = self._db.rows(queries.DEAD, (chosen,))
            queued = sum(self._queue_again(*row) for row in dead)
            broken = self._db.rows(queries.DONE_WITH, (chosen, json.dumps(list(lost))))
            return Retried(
                queued=queued,
                held=len(dead) - queued,
                remade=sum(self._queue_again(*row) for row in broken),
                pending=self._db.execute(queries.SEND_AGAIN, (chosen, named, _now())),
                added=self._db.execute(queries.ADD_MISSING_DELIVERIES, (chosen, named, _now())),
                left=dict(self._db.rows(queries.LEFT_DELIVERIES, (chosen, named))),
            )

    def _queue_again(self, instance: int, sop_instance_uid: str, content_digest: str) -> bool:
        if self._db.rows(queries.RIVAL, (sop_instance_uid, content_digest)):
            return False
        self._db.execute(queries.QUEUE_AGAIN, (None, _now(), instance))
        return True

    # Looking

    def find(self, key: str) -> str | None:
        """The SOP Instance UID of the instance that `key` means, or None: its own UID or that of
        an output, or the name that the log gives to either.
        """
        rows = self._db.rows(queries.FIND, (key,))
        return str(rows[0][1]) if rows else None

    def instances(
        self, *, state: InstanceState | None = None, sop_instance_uid: str | None = None
    ) -> list[Instance]:
        """Instances with their deliveries, oldest first, all or those asked for."""
        where = "WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR sop_instance_uid = ?2)"
        return self._instances(where + " ORDER BY id", (state, sop_instance_uid))

    def counts(self) -> dict[InstanceState, int]:
        """How many instances are in each state; a state without any is left out."""
        return {InstanceState(state): int(count) for state, count in self._db.rows(queries.COUNTS)}

    def pending_deliveries(self) -> int:
        return sum(self.pending_by_destination().values())

    def pending_by_destination(self) -> dict[str, int]:
        """How many outputs wait for each destination; one that none waits for is left out."""
        return dict(self._db.rows(queries.PENDING_DELIVERIES))

    def destinations(self) -> set[str]:
        """Every destination that an output was ever meant for."""
        return {str(name) for (name,) in self._db.rows(queries.DESTINATIONS)}

    def blobs(self) -> set[str]:
        """Every blob that an instance or an output refers to."""
        return {str(blob) for (blob,) in self._db.rows(queries.BLOBS)}

    def _instances(self, where: str, values: Sequence[Any]) -> list[Instance]:
        return [
            _instance(row, self._db.rows(queries.DELIVERIES, row[:1]))
            for row in self._db.rows(queries.INSTANCES + where, values)
        ]


def _instance(row: Sequence[Any], deliveries: Sequence[Sequence[Any]]) -> Instance:
    return Instance(
        id=row[0],
        sop_instance_uid=row[1],
        sop_class_uid=row[2],
        content_digest=row[3],
        blob=row[4],
        state=InstanceState(row[5]),
        reason=row[6],
        detail=row[7],
        received=datetime.fromisoformat(row[8]),
        updated=datetime.fromisoformat(row[9]),
        duplicates=row[10],
        attempts=row[11],
        summary=None if row[12] is None else json.loads(row[12]),
        deliveries=tuple(_delivery(item) for item in deliveries),
    )


def _delivery(row: Sequence[Any]) -> Delivery:
    return Delivery(
        destination=row[0],
        output_uid=row[1],
        kind=row[2],
        state=DeliveryState(row[3]),
        attempts=row[4],
        status=row[5],
        detail=row[6],
        updated=datetime.fromisoformat(row[7]),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
