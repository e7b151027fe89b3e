"""`nemt-dicom jobs`: shows instances and deliveries, and retries dead ones.

It works on the database of a state folder. The service may run or not.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from rich.table import Table

from nemt_dicom.config import Settings
from nemt_dicom.errors import NemtError, StateError
from nemt_dicom.log import instance_name
from nemt_dicom.state.database import BUSY_MS
from nemt_dicom.state.records import Instance
from nemt_dicom.state.spool import Spool
from nemt_dicom.state.store import Store


@contextmanager
def opened(
    settings: Settings, *, read_only: bool = True, busy_ms: int = BUSY_MS
) -> Iterator[Store]:
    """Opens the database of the state folder, and closes it at the end.

    busy_ms: milliseconds to wait for the lock of another process.

    Raises `StateError` if the database cannot be used or stays locked.
    """
    state_dir = settings.state.dir
    try:
        with closing(Store(state_dir, read_only=read_only, busy_ms=busy_ms)) as store:
            yield store
    except OSError as error:
        raise StateError(f"state folder {state_dir}: {error.strerror}") from error


def find(store: Store, key: str) -> str:
    """The SOP Instance UID that `key` stands for, see `Store.find`.

    Raises `NemtError` if the database holds no such instance.
    """
    uid = store.find(key)
    if uid is None:
        raise NemtError(f"no instance {key} in this state folder: `nemt-dicom jobs list` shows all")
    return uid


def overview(instances: Sequence[Instance]) -> Table:
    """One line for each instance."""
    table = folding_table("received (UTC)", "SOP Instance UID", "state", "reason", "p", "delivered")
    for instance in instances:
        probability = (instance.summary or {}).get("probability")
        sent = sum(delivery.state == "sent" for delivery in instance.deliveries)
        table.add_row(
            f"{instance.received:%Y-%m-%d %H:%M:%S}",
            instance.sop_instance_uid,
            instance.state.value,
            instance.reason or "",
            "" if probability is None else f"{probability:.3f}",
            f"{sent}/{len(instance.deliveries)}" if instance.deliveries else "",
        )
    return table


def details(instance: Instance) -> Iterator[Table]:
    """A table of everything that is known about an instance, then a table of its deliveries."""
    table = folding_table("", "")
    table.show_header = False
    for key, value in _as_dict(instance).items():
        if key not in {"deliveries", "evidence"} and value is not None:
            table.add_row(key, str(value))
    for key, value in (instance.summary or {}).items():
        table.add_row(key, str(value))
    yield table
    if not instance.deliveries:
        return
    deliveries = folding_table("destination", "object", "UID", "state", "attempts", "last answer")
    for d in instance.deliveries:
        answer = " ".join(text for text in (d.status, d.detail) if text)
        deliveries.add_row(
            d.destination, d.kind, d.output_uid, d.state.value, str(d.attempts), answer
        )
    yield deliveries


def as_json(instances: Sequence[Instance]) -> str:
    """Everything that is known about the instances, as a JSON array for programs."""
    return json.dumps([_as_dict(instance) for instance in instances], indent=2)


def retry(
    settings: Settings, keys: Sequence[str] | None, *, by_file: bool, busy_ms: int = BUSY_MS
) -> list[str]:
    """Retries dead instances and dead deliveries, see `Store.retry`. Returns lines for a report.

    keys: the instances, see `find`; None for all.
    by_file: whether the settings come from a file.
    busy_ms: milliseconds to wait for the lock of the database.

    Raises `NemtError` if a key is unknown. Raises it also if these settings name no destination but
    the database does: then they are not the settings of the service.
    """
    configured = [destination.name for destination in settings.resolved_destinations()]
    # First a reader: it neither creates a database nor migrates the one of a running service.
    with opened(settings) as store:
        uids = None if keys is None else [find(store, key) for key in keys]
        not_configured = store.destinations().difference(configured)
    if not_configured and not settings.destinations and not by_file:
        raise NemtError(
            f"results went to {', '.join(sorted(not_configured))}, and these settings name no "
            "destination: name the configuration file of the service with --config"
        )
    with opened(settings, read_only=False, busy_ms=busy_ms) as store:
        spool = Spool(settings.state.dir, process="jobs")
        lost = {blob: image for blob, image in store.given_up(uids) if spool.has_lost(blob)}
        gone = {blob for blob, image in lost.items() if spool.has_lost(image)}
        done = store.retry(uids, configured, lost.keys() - gone)
    lines = [
        f"instances queued again: {done.queued}",
        f"deliveries tried again: {done.pending}",
        f"deliveries added: {done.added}",
    ]
    if done.remade:
        lines.append(f"instances explained again because their results were lost: {done.remade}")
    if gone:
        lines.append(f"results that are lost with their images, for good: {len(gone)}")
    if done.held:
        lines.append(f"instances left dead because their UID came with other content: {done.held}")
    return lines + [
        f"deliveries left, destination {name} is not configured: {count}"
        for name, count in done.left.items()
    ]


def folding_table(*headers: str) -> Table:
    """A table that folds long values and never cuts them."""
    table = Table()
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _as_dict(instance: Instance) -> dict[str, Any]:
    return {
        "sop_instance_uid": instance.sop_instance_uid,
        "name": instance_name(instance.sop_instance_uid),
        "sop_class_uid": instance.sop_class_uid,
        "state": instance.state.value,
        "reason": instance.reason,
        "detail": instance.detail,
        "received": instance.received.isoformat(),
        "updated": instance.updated.isoformat(),
        "duplicates": instance.duplicates,
        "attempts": instance.attempts,
        "evidence": instance.summary,
        "deliveries": [
            {
                "destination": d.destination,
                "sop_instance_uid": d.output_uid,
                "kind": d.kind,
                "state": d.state.value,
                "attempts": d.attempts,
                "status": d.status,
                "detail": d.detail,
            }
            for d in instance.deliveries
        ],
    }
