"""What the database says: instances, outputs, deliveries. store.py changes them."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nemt_dicom.state import queries
from nemt_dicom.state.database import BUSY_MS, Database
from nemt_dicom.state.migrations import FUNCTIONS, STEPS
from nemt_dicom.state.records import (
    Delivery,
    DeliveryState,
    Instance,
    InstanceState,
    Output,
    Parcel,
)


class StoreReader:
    """One connection to the database of a state folder, and all questions to it.

    Methods are safe to call from several threads. A failing disk or a locked database raises
    `OSError`, a damaged file `StateError`.
    """

    def __init__(self, state_dir: Path, *, read_only: bool = False, busy_ms: int = BUSY_MS) -> None:
        """Opens the database. Unless `read_only`, creates or migrates it if necessary.

        busy_ms: milliseconds to wait for the lock of another process.

        Raises `StateError` if it is missing, damaged, not ours, written by a newer release, or
        written by an earlier release and opened `read_only`.
        """
        self.path = state_dir / "store.db"
        self._db = Database(
            self.path, steps=STEPS, functions=FUNCTIONS, read_only=read_only, busy_ms=busy_ms
        )

    def close(self) -> None:
        self._db.close()

    def check_integrity(self) -> None:
        """Raises `StateError` if the database file is damaged."""
        self._db.check_integrity()

    def data_version(self) -> int:
        """A number that changes when another connection has committed something. Costs 3 us."""
        return int(self._db.rows("PRAGMA data_version")[0][0])

    # Instances

    def knows(self, sop_instance_uid: str, content_digest: str) -> bool:
        """Whether this content was acknowledged before."""
        known = self._db.rows(queries.KNOWN, (sop_instance_uid, content_digest))
        return bool(known) and known[0][1] is not None

    def find(self, key: str) -> str | None:
        """The SOP Instance UID of the instance that `key` means, or None.

        `key` is the UID of the instance or of one of its outputs, or the name of 12 digits that
        the log gives to either.
        """
        rows = self._db.rows(queries.FIND, (key,))
        return str(rows[0][1]) if rows else None

    def instances(
        self, *, state: InstanceState | None = None, sop_instance_uid: str | None = None
    ) -> list[Instance]:
        """Instances with their deliveries, oldest first: all, or only those with this state and
        this UID.
        """
        condition = "WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR sop_instance_uid = ?2)"
        return self._instances(condition + " ORDER BY id", (state, sop_instance_uid))

    def counts(self) -> dict[InstanceState, int]:
        """How many instances are in each state. A state without any is left out."""
        return {InstanceState(state): int(count) for state, count in self._db.rows(queries.COUNTS)}

    def blobs(self) -> set[str]:
        """Every blob that an instance or an output refers to."""
        return {str(blob) for (blob,) in self._db.rows(queries.BLOBS)}

    def _instances(self, condition: str, values: Sequence[Any]) -> list[Instance]:
        return [
            _instance(row, self._db.rows(queries.DELIVERIES, row[:1]))
            for row in self._db.rows(queries.INSTANCES + condition, values)
        ]

    # Deliveries

    def due(self, destination: str, *, now: float, longest_wait: float) -> Parcel | None:
        """The next output to send to `destination`, or None. Times are seconds since 1970.

        A retry that is set further ahead than `longest_wait` comes from a wrong clock: it is due.
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
        """SOP class and transfer syntax of the outputs that wait for `destination`, each pair
        once.
        """
        return [
            (str(sop_class), str(syntax))
            for sop_class, syntax in self._db.rows(queries.PENDING_SYNTAXES, (destination,))
        ]

    def pending_by_destination(self) -> dict[str, int]:
        """How many outputs wait for each destination. One that none waits for is left out."""
        return dict(self._db.rows(queries.PENDING_DELIVERIES))

    def destinations(self) -> set[str]:
        """Every destination that an output was ever meant for."""
        return {str(name) for (name,) in self._db.rows(queries.DESTINATIONS)}

    def given_up(self, uids: Sequence[str] | None) -> list[tuple[str, str]]:
        """Outputs with a dead delivery: the blob of each, and the blob of the image it explains.

        uids: SOP Instance UIDs of the images; None for all.
        """
        rows = self._db.rows(queries.GIVEN_UP, (as_json(uids),))
        return [(str(output), str(image)) for output, image in rows]


def as_json(names: Sequence[str] | None) -> str | None:
    """A list for a query that takes NULL for all."""
    return None if names is None else json.dumps(list(names))


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
