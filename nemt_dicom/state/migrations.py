"""The schema of the database, as the steps that lead to it. store.py explains the tables.

A step is never changed once it was released: files that it made are in use. To change the schema,
add a step; `Database` runs the missing ones when it opens a file.
"""

from nemt_dicom.log import instance_name

FUNCTIONS = {"instance_name": instance_name}
"""SQL functions of one argument that the steps and queries.py use."""

STEPS = (
    (
        1,
        """
        CREATE TABLE instances (
            id INTEGER PRIMARY KEY,
            sop_instance_uid TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL,
            content_digest TEXT NOT NULL,             -- of the dataset, without file meta
            blob TEXT,                                -- NULL: refused on the wire, no bytes kept
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
        """,
    ),
    (
        2,
        # The name of 12 digits that the log gives a UID. It is a hash: to look one up without
        # this column, every UID of the database has to be read and hashed.
        # superseded: 1 if a later run made other outputs. Release 0.7 had no such mark, but it
        # removed the deliveries of an output that it did not send any more.
        """
        ALTER TABLE instances ADD COLUMN name TEXT NOT NULL DEFAULT '';
        ALTER TABLE outputs ADD COLUMN name TEXT NOT NULL DEFAULT '';
        UPDATE instances SET name = instance_name(sop_instance_uid);
        UPDATE outputs SET name = instance_name(sop_instance_uid);
        CREATE INDEX instances_by_name ON instances (name);
        CREATE INDEX outputs_by_name ON outputs (name);
        ALTER TABLE outputs ADD COLUMN superseded INTEGER NOT NULL DEFAULT 0;
        UPDATE outputs SET superseded = 1
            WHERE sop_instance_uid NOT IN (SELECT output FROM deliveries);
        """,
    ),
)
"""Number and SQL of each step, in order: step N makes version N of version N - 1."""
