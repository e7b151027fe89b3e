"""A state folder as release 0.7 left it: database version 1, with rows in every state."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from nemt_dicom.state.spool import Spool
from tests.service.service_kit import encode, radiograph

# The text of release 0.7, which must not follow the code.
SCHEMA = """
CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    sop_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    content_digest TEXT NOT NULL,             -- of the dataset, without file meta information
    blob TEXT,                                -- NULL: refused on the wire, bytes not kept
    state TEXT NOT NULL,
    reason TEXT,
    detail TEXT,
    received TEXT NOT NULL,
    updated TEXT NOT NULL,
    duplicates INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,      -- runs begun
    strikes INTEGER NOT NULL DEFAULT 0,       -- runs alone, counted as they begin
    interruptions INTEGER NOT NULL DEFAULT 0,
    alone INTEGER NOT NULL DEFAULT 0,         -- 1: runs in no batch with others
    lease TEXT,                               -- the worker process that runs it
    summary TEXT,
    UNIQUE (sop_instance_uid, content_digest)
) STRICT;
CREATE INDEX instances_by_state ON instances (state, alone, id);
CREATE TABLE outputs (
    sop_instance_uid TEXT PRIMARY KEY,
    instance INTEGER NOT NULL REFERENCES instances (id),
    kind TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    study_instance_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    blob TEXT NOT NULL
) STRICT;
CREATE INDEX outputs_by_instance ON outputs (instance);
CREATE TABLE deliveries (
    output TEXT NOT NULL REFERENCES outputs (sop_instance_uid),
    destination TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    rejections INTEGER NOT NULL DEFAULT 0,
    status TEXT,
    detail TEXT,
    retry_at REAL NOT NULL DEFAULT 0,         -- seconds since 1970
    updated TEXT NOT NULL,
    PRIMARY KEY (output, destination)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (destination, state, retry_at);
PRAGMA user_version = 1;
"""
TIME = "2026-01-02T03:04:05+00:00"
STATES = ("queued", "inferring", "done", "dead", "conflict", "refused", "refused on the wire")
DELIVERIES = ("pending", "sent", "dead")


@dataclass
class Version1:
    """What `write` put into the folder: UIDs of images by state, of outputs by delivery state."""

    images: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


def write(state_dir: Path, destination: str = "pacs") -> Version1:
    """Makes the state folder. The image in state `done` has an output for each delivery state."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    spool = Spool(state_dir, process="listener")
    spool.prepare()
    written = Version1()
    with opened(state_dir / "store.db") as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(SCHEMA)
        for number, state in enumerate(STATES, 1):
            dataset = radiograph(uid=written.images["done"] if state == "conflict" else None)
            written.images[state] = str(dataset.SOPInstanceUID)
            blob = None if state == "refused on the wire" else spool.put(encode(dataset))
            _add_instance(database, number, dataset, state, blob)
            if state == "done":
                for delivery in DELIVERIES:
                    uid = _add_output(database, spool, number, destination, delivery)
                    written.outputs[delivery] = uid
        database.commit()
    return written


def _add_instance(
    database: sqlite3.Connection, number: int, dataset: Dataset, state: str, blob: str | None
) -> None:
    reason = {"dead": "failed", "conflict": "other_content", "queued": None, "done": None}
    database.execute(
        "INSERT INTO instances (id, sop_instance_uid, sop_class_uid, content_digest, blob, state, "
        "reason, received, updated, lease) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            number,
            dataset.SOPInstanceUID,
            dataset.SOPClassUID,
            f"content {number}",
            blob,
            state.split(maxsplit=1)[0],
            reason.get(state, "not_chest" if state.startswith("refused") else None),
            TIME,
            TIME,
            "a worker that was killed" if state == "inferring" else None,
        ),
    )


def _add_output(
    database: sqlite3.Connection, spool: Spool, instance: int, destination: str, state: str
) -> str:
    dataset = radiograph()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    uid = str(dataset.SOPInstanceUID)
    database.execute(
        "INSERT INTO outputs VALUES (?, ?, 'sc', ?, ?, ?, ?)",
        (
            uid,
            instance,
            SecondaryCaptureImageStorage,
            generate_uid(),
            ExplicitVRLittleEndian,
            spool.put(encode(dataset)),
        ),
    )
    database.execute(
        "INSERT INTO deliveries (output, destination, state, updated) VALUES (?, ?, ?, ?)",
        (uid, destination, state, TIME),
    )
    return uid


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database as Python's own SQLite sees it."""
    with closing(sqlite3.connect(path)) as database:
        yield database


def version(path: Path) -> int:
    with opened(path) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def dump(path: Path) -> list[str]:
    """Schema and rows as SQL."""
    with opened(path) as database:
        return list(database.iterdump())
