"""An SQLite file whose commits survive a power cut. Knows nothing of what is stored in it."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from nemt_dicom.errors import StateError

BUSY_MS = 10_000

Row = tuple[Any, ...]


class Database:
    """One connection, safe to use from several threads. Use one for each process.

    Errors of SQLite become `OSError` (disk full or failing, locked) or `StateError` (damaged).
    """

    def __init__(self, path: Path, *, schema: str, version: int, read_only: bool = False) -> None:
        """Opens the file; creates it with `schema` where it is missing, unless `read_only`.

        Raises `StateError` where it is missing, damaged, of a later `version` or cannot be opened.
        """
        self.path = path
        self._lock = threading.RLock()
        try:
            if read_only and not path.exists():
                raise StateError(
                    f"{path} does not exist: no service has run with this state folder"
                )
            with _translated(path):
                self._connection = _connect(path, read_only=read_only)
                found = self.rows("PRAGMA user_version")[0][0]
                if found > version:
                    raise StateError(f"{path} was written by a newer release of nemt-dicom")
                if found == 0 and not read_only:
                    self.execute(
                        f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {version}; COMMIT"
                    )
        except apsw.ReadOnlyError as error:  # even a reader writes the index of the log beside it
            raise StateError(f"{path}: cannot be opened: its folder is not writable") from error
        except (OSError, apsw.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise StateError(f"{path}: cannot be opened: {reason}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def check_integrity(self) -> None:
        """Raises `StateError` where the file is damaged."""
        found = self.rows("PRAGMA integrity_check")
        if found != [("ok",)]:
            raise StateError(f"{self.path} is damaged: {found[0][0]}")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Runs a statement and returns all its rows."""
        with self._lock, _translated(self.path):
            return list(self._connection.execute(sql, tuple(values)))

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Runs a statement without rows; returns how many rows the last change touched."""
        self.rows(sql, values)
        return self._connection.changes()

    @contextmanager
    def change(self) -> Iterator[None]:
        """One transaction: committed and on the disk at the end, rolled back on any error."""
        with self._lock, _translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def durability(sqlite_version: str) -> tuple[str, str]:
    """Journal mode and synchronous setting that lose no commit in this version of SQLite.

    In WAL mode 3.7.0 to 3.51.2 can lose commits where there are two or more connections.
    """
    version = tuple(int(part) for part in sqlite_version.split("."))
    return ("WAL", "FULL") if version >= (3, 51, 3) else ("DELETE", "EXTRA")


def _connect(path: Path, *, read_only: bool) -> apsw.Connection:
    if read_only:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(BUSY_MS)
        return connection
    # Made first, so that no moment exists in which others could read it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_MS)
    journal, synchronous = durability(apsw.sqlite_lib_version())
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Errors of SQLite as the errors callers know."""
    try:
        yield
    except apsw.FullError as error:
        raise OSError(errno.ENOSPC, "the disk of the state folder is full") from error
    except apsw.BusyError as error:
        raise OSError(errno.EBUSY, "the database is locked") from error
    except apsw.IOError as error:
        raise OSError(errno.EIO, "the disk of the state folder fails") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StateError(f"{path} is damaged") from error
