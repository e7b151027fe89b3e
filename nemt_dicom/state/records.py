"""What the database holds, as plain values: states, instances, outputs, deliveries."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from nemt_dicom.errors import Reason


class InstanceState(StrEnum):
    QUEUED = "queued"
    INFERRING = "inferring"
    DONE = "done"
    DEAD = "dead"
    CONFLICT = "conflict"
    REFUSED = "refused"


class DeliveryState(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    DEAD = "dead"


class DeadReason(StrEnum):
    """Why an instance ended as a dead letter."""

    BAD_OUTPUT = "bad_output"
    FAILED = "failed"
    WORKER_CRASH = "worker_crash"


CONFLICT_REASON = "other_content"
"""The `reason` of an instance in state conflict: its UID is known with other content."""


class Receipt(StrEnum):
    """What became of an instance that was received. All three are acknowledged."""

    QUEUED = "queued"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A received instance. `content_digest` is the SHA-256 of its dataset without file meta
    information, `blob` that of the whole file in the spool.
    """

    sop_class_uid: str
    sop_instance_uid: str
    content_digest: str
    blob: str
    received: datetime


@dataclass(frozen=True, kw_only=True)
class Retried:
    """What trying again has set going: `queued` instances, `remade` ones whose results were lost,
    `pending` deliveries that were dead, `added` deliveries to destinations that had none. `held`
    are dead instances whose UID is known with other content that is or will be explained; `left`
    counts deliveries by destinations that are not configured.
    """

    queued: int
    held: int
    remade: int
    pending: int
    added: int
    left: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An instance that was refused on the wire; its bytes are not kept."""

    sop_class_uid: str
    sop_instance_uid: str
    content_digest: str
    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Output:
    """A DICOM object that explains an image. Its bytes, a whole file (PS3.10), are handed on beside
    it as long as they are in memory; the spool keeps them.

    kind: "seg", "sc" or "seg_fractional".
    sop_class_uid: of the object.
    sop_instance_uid: of the object.
    study_instance_uid: of the object, and of the image.
    transfer_syntax_uid: how the bytes are encoded.
    blob: SHA-256 of the bytes, lower-case hexadecimal: their name in the spool.
    """

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    blob: str


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One output on its way to one destination. Counts are of attempts before this one.

    source: SOP Instance UID of the image it explains.
    """

    destination: str
    output: Output
    source: str
    attempts: int
    rejections: int


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How far an output is on its way to a destination. `status` is the last answer, as `0x0000`
    for a DICOM node; None before the first.
    """

    destination: str
    output_uid: str
    kind: str
    state: DeliveryState
    attempts: int
    status: str | None
    detail: str | None
    updated: datetime


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A received instance. `blob` is None where it was refused on the wire. Times are UTC."""

    id: int
    sop_instance_uid: str
    sop_class_uid: str
    content_digest: str
    blob: str | None
    state: InstanceState
    reason: str | None
    detail: str | None
    received: datetime
    updated: datetime
    duplicates: int
    attempts: int
    summary: Mapping[str, Any] | None
    deliveries: tuple[Delivery, ...] = ()
