"""Every change of the database: instances, outputs, deliveries. reader.py has the questions.

    instance   queued -> inferring -> done | dead | refused; conflict and refused also on arrival
    output     a DICOM object whose bytes are in the spool. If the disk loses them, the bytes that
               are made again take their place. superseded: a later run made other outputs
    delivery   pending -> sent | dead, one for each output and destination

A dead instance is queued again if it is sent again or an operator asks for it. A dead delivery is
pending again if an operator asks for it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nemt_dicom.errors import Reason
from nemt_dicom.state import queries
from nemt_dicom.state.reader import StoreReader, as_json
from nemt_dicom.state.records import (
    CONFLICT_REASON,
    Arrival,
    DeadReason,
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


class Store(StoreReader):
    """One connection to the database of a state folder, for changes. Use one for each process.

    A change is one transaction. It is on the disk when the method returns. Methods are safe to call
    from several threads. A full or failing disk raises `OSError`, a damaged file `StateError`.
    """

    # Arrival, by the listener

    def receive(self, arrival: Arrival) -> Receipt:
        """Records an instance whose bytes are in the spool; durable on return.

        It is a conflict, and is not explained, if other content with the same UID is explained or
        waits for it. The same content is a duplicate. A duplicate changes nothing, except that a
        dead instance, or a conflict whose rival is gone, is queued again.
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

    # Explanation, by the worker. `lease` names the worker process. No method but
    # `recover` touches an instance that another lease holds. Methods that end a run return False if
    # the lease is lost.

    def recover(self, *, crashed: bool) -> None:
        """Puts back what an earlier worker held, to run alone. Call before the first `claim`.

        `crashed`: the worker crashed, and an instance that ran alone gets a strike. Otherwise the
        whole service was killed, or the worker ended with an error that no image caused. Such an
        interruption counts far less than a strike.
        """
        with self._db.change():
            if not crashed:
                self._db.execute(queries.TAKE_BACK_INTERRUPTED)
            self._db.execute(queries.BURY_CRASHERS, (_now(), MAX_STRIKES, MAX_INTERRUPTIONS))
            self._db.execute(queries.RECOVER, (_now(),))

    def claim(self, lease: str, limit: int, without: Iterable[int] = ()) -> list[Instance]:
        """Takes up to `limit` queued instances, oldest first, except `without`, ids of instances.

        An instance that must run alone comes first, and comes alone. Its strike is counted now,
        because a crash leaves no time for it.
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
        """Ends a run with its outputs and their deliveries.

        An output that is made again takes its new bytes, for the destinations that lack it. A
        destination that has it is never sent other bytes under its UID. Outputs of an earlier run
        that have other UIDs are superseded: they are not sent any more, `retry` included.
        """
        with self._db.change():
            if not self._end(lease, instance, InstanceState.DONE, summary=summary):
                return False
            for output in outputs:
                self._add_output(instance, output, destinations)
            kept = json.dumps([output.sop_instance_uid for output in outputs])
            self._db.execute(queries.SUPERSEDE, (instance, kept))
            self._db.execute(queries.DROP_SUPERSEDED, (instance,))
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

        Call it only for an instance that ran alone: no other instance has a strike.
        """
        with self._db.change():
            strikes = self._db.rows(queries.STRIKES, (instance, lease))
            if strikes and strikes[0][0] < MAX_STRIKES:
                row = (DeadReason.FAILED, detail, _now(), instance)
                return self._db.execute(queries.RETRY_ALONE, row) == 1
            return self._end(
                lease, instance, InstanceState.DEAD, reason=DeadReason.FAILED, detail=detail
            )

    def release(self, lease: str, *, alone: bool = False) -> None:
        """Puts back all instances that `lease` still holds, without a strike.

        `alone`: each of them is to run alone.
        """
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

    def sent(self, parcel: Parcel, *, status: str | None, detail: str | None = None) -> None:
        """Ends a delivery: the destination has the output."""
        self._mark(parcel, DeliveryState.SENT, status=status, detail=detail)

    def postpone(
        self, parcel: Parcel, *, status: str | None, detail: str, retry_at: float, rejected: bool
    ) -> None:
        """Leaves a delivery pending until `retry_at`, in seconds since 1970.

        `rejected`: the destination rejected the output.
        """
        self._mark(
            parcel,
            DeliveryState.PENDING,
            rejections=int(rejected),
            status=status,
            detail=detail,
            retry_at=retry_at,
        )

    def give_up(self, parcel: Parcel, *, status: str | None, detail: str) -> None:
        """Ends a delivery as a dead letter: the output cannot be sent there unchanged."""
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

    def retry(
        self,
        uids: Sequence[str] | None,
        destinations: Sequence[str],
        lost: Iterable[str] = (),
    ) -> Retried:
        """Queues dead instances again, and makes dead deliveries pending again.

        uids: SOP Instance UIDs of the images; None for all.
        destinations: names of the configured destinations. Each output gets a delivery to each of
            them. Deliveries to other destinations stay as they are.
        lost: blobs that the disk lost. Instances whose output blob is in `lost` are queued again.
            Their new bytes replace the lost ones. A destination that has the old bytes keeps them.

        Of several dead instances with one UID only the latest is queued.
        """
        chosen = as_json(uids)
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


def _now() -> str:
    return datetime.now(UTC).isoformat()
