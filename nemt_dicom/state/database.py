"""An SQLite file whose commits survive a power cut. Knows nothing of what is stored in it.

The schema is the result of numbered steps; `PRAGMA user_version` is the number of the last step
that a file has had. A file that lacks steps gets them when it is opened for writing, all in one
transaction: whatever ends the process leaves either the old file or the new one. Before that, the
old file is copied to `NAME.vN` beside it.
"""

import contextlib
import errno
import filecmp
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw

from nemt_dicom.errors import StateError
from nemt_dicom.files import Fs

LOGGER = logging.getLogger(__name__)

BUSY_MS = 10_000
"""Milliseconds that a statement waits for the lock of another connection."""

Row = tuple[Any, ...]
Step = tuple[int, str]
"""Number and SQL: step N makes version N of version N - 1."""
Functions = Mapping[str, Callable[..., Any]]
"""SQL functions of one argument, by name."""


class Database:
    """One connection, safe to use from several threads. Use one for each process.

    Errors of SQLite become `OSError` (disk full or failing, locked) or `StateError` (damaged).
    """

    def __init__(
        self,
        path: Path,
        *,
        steps: Sequence[Step],
        functions: Functions | None = None,
        read_only: bool = False,
        busy_ms: int = BUSY_MS,
        fs: Fs | None = None,
    ) -> None:
        """Opens the file. Unless `read_only`, creates it if it is missing and migrates it if it is
        older than the last of `steps`.

        `steps` begin with number 1. They and all later statements may call `functions`.

        Raises `StateError` if the file is missing, damaged, not ours, of a later version, cannot
        be opened, or is older and opened `read_only`.
        """
        self.path = path
        self._lock = threading.RLock()
        self._fs = fs or Fs()
        try:
            if read_only and not path.exists():
                raise StateError(
                    f"{path} does not exist: no service has run with this state folder"
                )
            with _translated(path):
                self._connection = _connect(path, functions or {}, busy_ms, read_only=read_only)
                try:
                    self._prepare(steps, read_only=read_only)
                except BaseException:
                    self._connection.close()
                    raise
        except apsw.ReadOnlyError as error:  # even a reader writes the index of the log beside it
            raise StateError(
                f"{path}: cannot be opened: it or its folder is not writable"
            ) from error
        except (OSError, apsw.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise StateError(f"{path}: cannot be opened: {reason}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def check_integrity(self) -> None:
        """Raises `StateError` if the file is damaged."""
        problems = self.rows("PRAGMA integrity_check")
        if problems != [("ok",)]:
            raise StateError(f"{self.path} is damaged: {problems[0][0]}")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Runs statements and returns all their rows."""
        with self._lock, _translated(self.path):
            return list(self._connection.execute(sql, tuple(values)))

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Runs a statement without rows; returns how many rows the last change touched."""
        with self._lock:  # no other thread changes rows in between
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

    def _prepare(self, steps: Sequence[Step], *, read_only: bool) -> None:
        """Checks whose file it is and brings it to the version of the last step."""
        latest = steps[-1][0]
        version = self._version()
        # Before anything is written: a file that is not ours stays as it is.
        if version > latest:
            raise StateError(f"{self.path} was written by a newer release of nemt-dicom")
        if version < 0 or (version == 0 and self.rows("SELECT 1 FROM sqlite_schema LIMIT 1")):
            raise StateError(f"{self.path} is not a database of nemt-dicom: move it away")
        if not read_only:
            _make_durable(self._connection)
            if version < latest:
                self._migrate(steps)
        elif version == 0:
            raise StateError(f"{self.path} is empty: no service has run with this state folder")
        elif version < latest:
            raise StateError(
                f"{self.path} was written by an earlier release of nemt-dicom (version {version}, "
                f"this release needs {latest}): start `nemt-dicom serve`, which migrates it"
            )

    def _version(self) -> int:
        return int(self.rows("PRAGMA user_version")[0][0])

    def _migrate(self, steps: Sequence[Step]) -> None:
        copy = None
        with self.change():
            version = self._version()  # again, under the lock: another process may have been first
            missing = [(number, sql) for number, sql in steps if number > version]
            if missing and version > 0:
                copy = self._keep_copy(version)
            for number, sql in missing:
                self.rows(sql)
                self.rows(f"PRAGMA user_version = {number}")
        if copy is not None:
            LOGGER.warning(
                "migrated %s from version %d to %d; a copy of the old one is %s",
                self.path,
                version,
                missing[-1][0],
                copy,
            )

    def _keep_copy(self, version: int) -> Path:
        """Copies the file as it was last committed; the copy is on the disk on return.

        Call it under the write lock. The copy is `NAME.vN`. If another file has that name, it is
        `NAME.vN.2` and so on; a file that already is this copy is kept.
        """
        draft = self.path.with_name(f"{self.path.name}.v{version}.part")
        try:
            self._fs.unlink(draft)  # a killed predecessor may have left one
            _make_file(draft)
            with (
                closing(apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)) as source,
                closing(apsw.Connection(str(draft))) as target,
                target.backup("main", source, "main") as backup,
            ):
                backup.step()  # every page
            self._fs.fsync(draft)
            for copy in _copy_names(self.path, version):
                if not copy.exists():
                    self._fs.rename(draft, copy)
                    break
                if filecmp.cmp(draft, copy, shallow=False):  # of an attempt that was cut off
                    self._fs.unlink(draft)
                    self._fs.fsync(copy)
                    break
            self._fs.fsync(copy.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                self._fs.unlink(draft)
            raise
        return copy


def durability(sqlite_version: str) -> tuple[str, str]:
    """Journal mode and synchronous setting that lose no commit in this version of SQLite.

    In WAL mode 3.7.0 to 3.51.2 can lose commits if there are two or more connections.
    """
    version = tuple(int(part) for part in sqlite_version.split("."))
    return ("WAL", "FULL") if version >= (3, 51, 3) else ("DELETE", "EXTRA")


def _connect(path: Path, functions: Functions, busy_ms: int, *, read_only: bool) -> apsw.Connection:
    if read_only:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    else:
        _make_file(path)
        connection = apsw.Connection(str(path))
    connection.set_busy_timeout(busy_ms)
    for name, function in functions.items():
        connection.create_scalar_function(name, function, 1, deterministic=True)
    return connection


def _make_file(path: Path) -> None:
    """Makes an empty file unless it exists, so that no moment exists in which others can read it.

    SQLite itself would make it with the rights that the umask leaves. An existing file is not
    opened: to close it again would drop the POSIX locks of this process' other connections.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _make_durable(connection: apsw.Connection) -> None:
    journal, synchronous = durability(apsw.sqlite_lib_version())
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA foreign_keys = ON")


def _copy_names(path: Path, version: int) -> Iterator[Path]:
    first = path.with_name(f"{path.name}.v{version}")
    yield first
    for number in itertools.count(2):
        yield first.with_name(f"{first.name}.{number}")


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
