"""Migrations: an older file becomes the new one or stays, whatever happens meanwhile."""

import errno
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import apsw
import pytest

from nemt_dicom.errors import StateError
from nemt_dicom.files import Fs
from nemt_dicom.log import instance_name
from nemt_dicom.state import queries
from nemt_dicom.state.database import Database
from nemt_dicom.state.migrations import FUNCTIONS, STEPS
from nemt_dicom.state.store import Store
from tests.conftest import ROOT
from tests.state import version_1
from tests.state.test_store import arrival
from tests.state.watched_fs import WatchedFs

LATEST = STEPS[-1][0]


def migrate(folder: Path, fs: Fs | None = None) -> None:
    Database(folder / "store.db", steps=STEPS, functions=FUNCTIONS, fs=fs).close()


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("store.db.*"))


def test_steps_are_numbered_from_one():
    assert [number for number, _ in STEPS] == list(range(1, LATEST + 1))


def test_the_released_step_has_not_changed():
    """Files of release 0.7 are in use: step 1 makes just such a file."""

    def plain(sql: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"--.*", "", sql)).strip()

    assert f"{plain(STEPS[0][1])} PRAGMA user_version = 1;" == plain(version_1.SCHEMA)


def test_an_older_file_is_migrated_and_a_copy_is_kept(tmp_path, caplog):
    written = version_1.write(tmp_path)
    before = version_1.dump(tmp_path / "store.db")
    with caplog.at_level(logging.WARNING):
        store = Store(tmp_path)
    assert f"from version 1 to {LATEST}; a copy of the old one is {tmp_path}/store.db.v1" in (
        caplog.text
    )
    store.check_integrity()
    states = [str(item.state) for item in store.instances()]
    assert states == [name.split()[0] for name in version_1.STATES]
    for uid in written.images.values():
        assert store.find(uid) == store.find(instance_name(uid)) == uid
    for uid in written.outputs.values():
        assert store.find(uid) == store.find(instance_name(uid)) == written.images["done"]
    store.receive(arrival("1.9"))
    assert store.find(instance_name("1.9")) == "1.9"
    store.close()
    copy = tmp_path / "store.db.v1"
    assert copies(tmp_path) == ["store.db.v1"]
    assert version_1.version(tmp_path / "store.db") == LATEST
    assert version_1.dump(copy) == before
    assert version_1.version(copy) == 1
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    caplog.clear()
    Store(tmp_path).close()  # it is migrated once
    assert caplog.text == ""
    assert "store.db.v1.2" not in copies(tmp_path)


def test_what_release_0_7_had_superseded_is_not_sent_again(tmp_path):
    """That release removed the deliveries of such an output, and kept no other mark."""
    written = version_1.write(tmp_path)
    with version_1.opened(tmp_path / "store.db") as database:
        database.execute("DELETE FROM deliveries WHERE output = ?", (written.outputs["dead"],))
        database.commit()
    store = Store(tmp_path)
    assert store.retry([written.images["done"]], ["pacs", "new"]).added == 2
    (done,) = store.instances(sop_instance_uid=written.images["done"])[:1]
    sent = {delivery.output_uid for delivery in done.deliveries}
    assert sent == {written.outputs["pending"], written.outputs["sent"]}
    store.close()


def test_a_copy_can_be_put_back(tmp_path):
    version_1.write(tmp_path)
    before = version_1.dump(tmp_path / "store.db")
    migrate(tmp_path)
    for file in tmp_path.glob("store.db-*"):
        file.unlink()
    (tmp_path / "store.db.v1").replace(tmp_path / "store.db")
    migrate(tmp_path)
    assert version_1.dump(tmp_path / "store.db.v1") == before
    Store(tmp_path).close()


def test_a_new_file_and_a_migrated_one_have_the_same_schema(tmp_path):
    (tmp_path / "new").mkdir()
    version_1.write(tmp_path / "old")
    shapes = []
    for folder in (tmp_path / "old", tmp_path / "new"):
        Store(folder).close()
        with version_1.opened(folder / "store.db") as database:
            names = "SELECT type, name, tbl_name FROM sqlite_schema ORDER BY 1, 2"
            shape = database.execute(names).fetchall()
            for _, _, table in list(shape):
                shape += database.execute(f"PRAGMA table_info({table})").fetchall()
            shapes.append(shape)
    assert shapes[0] == shapes[1]
    assert copies(tmp_path / "new") == [], "an empty file is not copied"


def test_names_are_looked_up_and_not_searched(tmp_path):
    store = Store(tmp_path)
    plan = store._db.rows(f"EXPLAIN QUERY PLAN {queries.FIND}", ("1.2",))
    assert not [row for row in plan if row[3].startswith("SCAN") and "CONSTANT" not in row[3]]
    assert "instances_by_name" in str(plan)
    assert "outputs_by_name" in str(plan)
    store.close()


def test_a_reader_of_an_older_file_says_what_to_do(tmp_path):
    """It must not migrate: the service of the earlier release may run."""
    version_1.write(tmp_path)
    before = (tmp_path / "store.db").read_bytes()
    with pytest.raises(StateError, match=r"earlier release.*start `nemt-dicom serve`"):
        Store(tmp_path, read_only=True)
    assert (tmp_path / "store.db").read_bytes() == before
    assert copies(tmp_path) == []


def test_a_file_of_another_program_is_left_alone(tmp_path):
    with version_1.opened(tmp_path / "store.db") as database:
        database.executescript("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1);")
    before = (tmp_path / "store.db").read_bytes()
    for read_only in (False, True):
        with pytest.raises(StateError, match="is not a database of nemt-dicom"):
            Store(tmp_path, read_only=read_only)
    assert (tmp_path / "store.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_a_newer_file_is_not_touched(tmp_path):
    migrate(tmp_path)
    with version_1.opened(tmp_path / "store.db") as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA user_version = 99")
    before = (tmp_path / "store.db").read_bytes()
    for read_only in (False, True):
        with pytest.raises(StateError, match="newer release"):
            Store(tmp_path, read_only=read_only)
    assert (tmp_path / "store.db").read_bytes() == before


def test_an_empty_file_becomes_a_database(tmp_path):
    """A kill between making the file and the first commit leaves one."""
    (tmp_path / "store.db").touch()
    with pytest.raises(StateError, match="is empty: no service has run"):
        Store(tmp_path, read_only=True)
    Store(tmp_path).close()
    Store(tmp_path, read_only=True).close()


def test_an_earlier_copy_is_never_overwritten(tmp_path):
    version_1.write(tmp_path)
    (tmp_path / "store.db.v1").write_bytes(b"of another database")
    (tmp_path / "store.db.v1.part").write_bytes(b"of a migration that was killed")
    before = version_1.dump(tmp_path / "store.db")
    migrate(tmp_path)
    assert copies(tmp_path) == ["store.db.v1", "store.db.v1.2"]
    assert (tmp_path / "store.db.v1").read_bytes() == b"of another database"
    assert version_1.dump(tmp_path / "store.db.v1.2") == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_under_the_copy_leaves_the_old_file(tmp_path, number):
    class Failing(WatchedFs):
        def __init__(self, fail_at: int) -> None:
            self.left = fail_at

        def before(self, operation: str, *_paths: Path) -> None:
            self.left -= operation in {"fsync", "rename"}
            if self.left == 0 and operation != "unlink":
                raise OSError(number, os.strerror(number))

    version_1.write(tmp_path)
    before = version_1.dump(tmp_path / "store.db")
    for fail_at in (1, 2, 3):
        with pytest.raises(StateError, match=os.strerror(number)):
            migrate(tmp_path, Failing(fail_at))
        assert version_1.dump(tmp_path / "store.db") == before
        assert version_1.version(tmp_path / "store.db") == 1
        assert not (tmp_path / "store.db.v1.part").exists()
    migrate(tmp_path)
    assert copies(tmp_path) == ["store.db.v1"], "trying again does not fill the disk"


def test_a_step_that_fails_leaves_the_old_file(tmp_path):
    version_1.write(tmp_path)
    before = version_1.dump(tmp_path / "store.db")
    steps = (*STEPS, (LATEST + 1, "DROP TABLE deliveries; SELECT no_such_function();"))
    for _ in range(3):
        with pytest.raises(StateError, match="no_such_function"):
            Database(tmp_path / "store.db", steps=steps, functions=FUNCTIONS)
    assert version_1.dump(tmp_path / "store.db") == before
    assert version_1.version(tmp_path / "store.db") == 1
    assert copies(tmp_path) == ["store.db.v1"]


KILLED = """
import os, signal, sys
from pathlib import Path
from nemt_dicom.state.database import Database
from nemt_dicom.state.migrations import FUNCTIONS, STEPS
from tests.state.watched_fs import WatchedFs

left = int(sys.argv[2])

def tick(value=None):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value

class Ticking(WatchedFs):
    def before(self, operation, *paths):
        tick()

# A moment before and after each statement, and one at each row that a statement changes.
steps = [(n, "SELECT tick(0);" + sql.replace(";", "; SELECT tick(0);")) for n, sql in STEPS]
name = FUNCTIONS["instance_name"]
functions = {"instance_name": lambda uid: tick(name(uid)), "tick": tick}
Database(Path(sys.argv[1]) / "store.db", steps=steps, functions=functions, fs=Ticking())
tick()
"""


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code, kill_at, versions = -signal.SIGKILL, 0, []
    while code != 0:
        kill_at += 1
        folder = tmp_path / str(kill_at)
        version_1.write(folder)
        before = version_1.dump(folder / "store.db")
        code = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(kill_at)], env=environment, check=False
        ).returncode
        assert code in {0, -signal.SIGKILL}
        versions.append(version_1.version(folder / "store.db"))
        if versions[-1] == 1:
            assert version_1.dump(folder / "store.db") == before
        migrate(folder)
        store = Store(folder)
        store.check_integrity()
        assert len(store.instances()) == len(version_1.STATES)
        assert all(store.find(instance_name(i.sop_instance_uid)) for i in store.instances())
        store.close()
        assert copies(folder) == ["store.db.v1"]
        assert version_1.dump(folder / "store.db.v1") == before
    assert versions == [1] * (kill_at - 2) + [LATEST] * 2  # killed after the commit; not killed
    assert kill_at > 20


OPENER = """
import logging, sys
from pathlib import Path
from nemt_dicom.state.store import Store
logging.basicConfig(stream=sys.stdout)
print("ready", flush=True)
sys.stdin.readline()
Store(Path(sys.argv[1])).close()
"""


def test_of_several_processes_one_migrates(tmp_path):
    version_1.write(tmp_path)
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for _ in range(4)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    said = [opener.communicate()[0] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * len(openers)
    assert sorted(text.count("migrated") for text in said) == [0, 0, 0, 1]
    assert copies(tmp_path) == ["store.db.v1"]


def test_who_waited_for_the_lock_looks_again(tmp_path):
    version_1.write(tmp_path)
    # Not Python's sqlite3: two builds of SQLite in one process do not see each other's locks.
    first = apsw.Connection(str(tmp_path / "store.db"))
    first.create_scalar_function("instance_name", instance_name, 1)
    first.execute("BEGIN IMMEDIATE")
    waiting = threading.Event()

    class Waits(Database):
        def _migrate(self, steps: object) -> None:
            waiting.set()
            super()._migrate(steps)

    opened = []
    thread = threading.Thread(
        target=lambda: opened.append(Waits(tmp_path / "store.db", steps=STEPS, functions=FUNCTIONS))
    )
    thread.start()
    assert waiting.wait(30)  # it has read version 1 and wants the lock
    list(first.execute(f"{STEPS[1][1]} PRAGMA user_version = 2; COMMIT"))
    first.close()
    thread.join(30)
    assert opened[0]._version() == LATEST
    opened[0].close()
    assert copies(tmp_path) == [], "the one that waited copied and changed nothing"
