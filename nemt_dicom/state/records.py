"""The content of the database as plain values: states, instances, outputs, deliveries."""

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
    """The state of an instance just after it was received. All three are acknowledged."""

    QUEUED = "queued"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A received instance.

    sop_class_uid: of its dataset.
    sop_instance_uid: of its dataset.
    content_digest: SHA-256 of its dataset, without file meta information.
    blob: SHA-256 of the whole file, its name in the spool.
    received: time of receipt, with a time zone.
    """

    sop_class_uid: str
    sop_instance_uid: str
    content_digest: str
    blob: str
    received: datetime


@dataclass(frozen=True, kw_only=True)
class Retried:
    """What `Store.retry` did, as numbers.

    queued: dead instances that are queued again.
    held: dead instances that stay dead, because other content with their UID is or will be
        explained.
    remade: instances that are queued again because the disk lost their outputs.
    pending: dead deliveries that are pending again.
    added: new deliveries, to destinations that had none.
    left: deliveries that were left as they are, by destination that is not configured.
    """

    queued: int
    held: int
    remade: int
    pending: int
    added: int
    left: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """An instance that was refused on the wire. Its bytes are not kept.

    sop_class_uid: of the C-STORE command; printable, but perhaps no valid UID.
    sop_instance_uid: of the C-STORE command; likewise.
    content_digest: SHA-256 of the dataset, without file meta information.
    reason: the code of the refusal.
    detail: the refusal in words.
    """

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
    """One output on its way to one destination.

    destination: its name in the configuration.
    output: the object to send.
    source: SOP Instance UID of the image that the output explains.
    attempts: attempts before this one.
    rejections: attempts before this one that the destination answered with a rejection.
    """

    destination: str
    output: Output
    source: str
    attempts: int
    rejections: int


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How far an output is on its way to a destination.

    destination: its name in the configuration.
    output_uid: SOP Instance UID of the output.
    kind: kind of the output, see `Output`.
    state: pending, sent or dead.
    attempts: attempts so far.
    status: DIMSE status of the last answer as `0x0000`; None before the first, and for a folder.
    detail: the last answer in words; None if there is nothing to say.
    updated: time of the last change, UTC.
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
    """A received instance. Times are UTC.

    id: its number in the database.
    sop_instance_uid: of its dataset.
    sop_class_uid: of its dataset.
    content_digest: SHA-256 of its dataset, without file meta information.
    blob: its name in the spool; None if it was refused on the wire.
    state: see `Store`.
    reason: why it is refused, dead or in conflict; None in other states.
    detail: the reason in words.
    received: time of receipt.
    updated: time of the last change of its state.
    duplicates: how many times the same content came again.
    attempts: runs begun.
    summary: the evidence and the times of the last run that ended well; None before.
    deliveries: of its outputs.
    """

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
