"""Store: every transition, against a model and one by one."""

import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nemt_dicom.errors import Reason, StateError
from nemt_dicom.log import instance_name
from nemt_dicom.state.database import durability
from nemt_dicom.state.records import (
    Arrival,
    DeadReason,
    DeliveryState,
    InstanceState,
    Output,
    Parcel,
    Receipt,
    Rejection,
)
from nemt_dicom.state.store import MAX_INTERRUPTIONS, MAX_STRIKES, Store

CR = "1.2.840.10008.5.1.4.1.1.1"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def arrival(uid: str, content: str = "a", blob: str | None = None) -> Arrival:
    return Arrival(
        sop_class_uid=CR,
        sop_instance_uid=uid,
        content_digest=content,
        blob=blob or f"blob {uid} {content}",
        received=NOW,
    )


def rejection(uid: str, content: str = "a") -> Rejection:
    return Rejection(
        sop_class_uid=CR,
        sop_instance_uid=uid,
        content_digest=content,
        reason=Reason.NO_PIXEL_DATA,
        detail="PixelData is missing",
    )


def output(uid: str, blob: str = "out", kind: str = "seg") -> Output:
    return Output(
        kind=kind,
        sop_class_uid="1.2.3",
        sop_instance_uid=uid,
        study_instance_uid="1.2.4",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        blob=blob,
    )


def due(store: Store, destination: str, now: float = 1e9) -> Parcel | None:
    return store.due(destination, now=now, longest_wait=300)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def states(store: Store) -> list[str]:
    return [str(item.state) for item in store.instances()]


def test_same_content_is_a_duplicate_other_content_a_conflict(store):
    assert store.receive(arrival("1.1")) is Receipt.QUEUED
    assert store.receive(arrival("1.1", blob="with other file meta")) is Receipt.DUPLICATE
    assert store.receive(arrival("1.1", "b")) is Receipt.CONFLICT
    assert store.receive(arrival("1.1", "b")) is Receipt.DUPLICATE
    first, second = store.instances(sop_instance_uid="1.1")
    assert (first.state, first.duplicates, first.blob) == ("queued", 1, "blob 1.1 a")
    assert (second.state, second.reason, second.duplicates) == ("conflict", "other_content", 1)
    assert [item.id for item in store.claim("w", 8)] == [first.id]


def test_refused_on_the_wire_is_shown_and_may_come_again(store):
    store.refuse_arrival(rejection("1.1"))
    store.refuse_arrival(rejection("1.1"))
    (item,) = store.instances(state=InstanceState.REFUSED)
    assert (item.reason, item.blob, item.duplicates) == ("no_pixel_data", None, 1)
    assert store.claim("w", 8) == []
    # It was not acknowledged: where the settings now allow it, it is taken.
    assert store.receive(arrival("1.1")) is Receipt.QUEUED
    assert states(store) == ["queued"]


def test_what_was_acknowledged_is_not_refused_afterwards(store):
    store.receive(arrival("1.1"))
    store.refuse_arrival(rejection("1.1"))
    assert states(store) == ["queued"]


def test_refused_by_the_worker_stays_refused(store):
    store.receive(arrival("1.1"))
    (item,) = store.claim("w", 8)
    assert store.refuse("w", item.id, Reason.NOT_CHEST, "body part is KNEE")
    assert store.receive(arrival("1.1")) is Receipt.DUPLICATE
    assert states(store) == ["refused"]
    # Nothing was made of it, so corrected content under the same UID is no conflict.
    assert store.receive(arrival("1.1", "b")) is Receipt.QUEUED


def kill_off(store: Store, uid: str) -> int:
    """Makes the only queued instance dead; returns its id."""
    (item,) = store.claim("w", 8)
    assert item.sop_instance_uid == uid
    assert store.bury("w", item.id, DeadReason.FAILED, "ValueError at x.py:1")
    return item.id


def test_what_is_dead_is_queued_again_where_it_is_sent_again(store):
    store.receive(arrival("1.1"))
    for _ in range(2):  # strikes are forgotten
        for strike in range(MAX_STRIKES):
            (item,) = store.claim("w", 8)
            store.fail("w", item.id, "ValueError at x.py:1")
            assert states(store) == ["dead" if strike == MAX_STRIKES - 1 else "queued"]
        assert store.receive(arrival("1.1", blob="the bytes of now")) is Receipt.DUPLICATE
        assert states(store) == ["queued"]
    (item,) = store.instances()
    assert (item.duplicates, item.reason, item.detail) == (2, None, None)
    assert item.blob == "the bytes of now"
    store.receive(arrival("1.2"))
    assert len(store.claim("w", 8)) == 1, "it endangers no other"


def test_dead_content_is_no_rival(store):
    store.receive(arrival("1.1"))
    kill_off(store, "1.1")
    assert store.receive(arrival("1.1", "corrected")) is Receipt.QUEUED
    assert store.receive(arrival("1.1")) is Receipt.DUPLICATE
    assert states(store) == ["dead", "queued"], "one content of a UID is explained, not two"


def test_a_conflict_with_what_has_died_is_none_where_it_is_sent_again(store):
    store.receive(arrival("1.1"))
    store.receive(arrival("1.1", "corrected"))
    kill_off(store, "1.1")
    assert store.receive(arrival("1.1", "corrected")) is Receipt.DUPLICATE
    assert states(store) == ["dead", "queued"]
    assert store.instances()[1].reason is None


def test_retry_queues_the_dead_and_leaves_the_rest(store):
    for uid in ("1.1", "1.2", "1.3"):
        store.receive(arrival(uid))
        kill_off(store, uid)
    store.receive(arrival("1.3", "corrected"))
    kill_off(store, "1.3")
    store.receive(arrival("1.4"))
    one = store.retry(["1.1"], ["pacs"])
    assert (one.queued, one.held, one.pending, one.added, one.left) == (1, 0, 0, 0, {})
    assert states(store) == ["queued", "dead", "dead", "dead", "queued"]
    rest = store.retry(None, ["pacs"])
    assert (rest.queued, rest.held) == (2, 1)
    assert states(store) == ["queued", "queued", "dead", "queued", "queued"]
    assert store.retry(None, ["pacs"]).queued == 0


def test_retry_sends_again_and_to_destinations_that_are_new(store):
    for uid in ("1.1", "1.2"):
        store.receive(arrival(uid))
        (item,) = store.claim("w", 8)
        outputs = [output(f"2.{uid}")]
        store.complete("w", item.id, outputs=outputs, destinations=["old", "pacs"], summary={})
        parcel = due(store, "pacs")
        assert parcel is not None
        store.postpone(parcel, status="0xC000", detail="no", retry_at=1e8, rejected=True)
        parcel = due(store, "pacs")
        assert parcel is not None
        store.give_up(parcel, status="0xC000", detail="no")
    assert store.pending_by_destination() == {"old": 2}
    one = store.retry(["1.1"], ["pacs", "new"])
    assert (one.queued, one.pending, one.added, one.left) == (0, 1, 1, {"old": 1})
    parcel = due(store, "pacs", 0)
    assert parcel is not None
    assert (parcel.output.sop_instance_uid, parcel.rejections) == ("2.1.1", 0)
    assert store.pending_by_destination() == {"new": 1, "old": 2, "pacs": 1}
    store.sent(parcel, status="0x0000")
    rest = store.retry(None, ["pacs", "new"])
    assert (rest.pending, rest.added, rest.left) == (1, 1, {"old": 2})
    assert sum(store.pending_by_destination().values()) == 2 + 2 + 1
    assert store.destinations() == {"new", "old", "pacs"}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_lost_result_is_made_again_and_sent_to_who_lacks_it(store, elsewhere):
    """The new bytes may differ: another processor rounds otherwise."""
    names = ["pacs", "other"]
    store.receive(arrival("1.1"))
    store.receive(arrival("1.2"))
    for item in store.claim("w", 8):
        outputs = [output(f"2.{item.sop_instance_uid}", blob=f"of {item.sop_instance_uid}")]
        store.complete("w", item.id, outputs=outputs, destinations=names, summary={})
    parcel = due(store, "pacs")
    assert (parcel.output.blob, parcel.source) == ("of 1.1", "1.1")
    store.give_up(parcel, status=None, detail="its bytes are damaged")
    if elsewhere:
        store.sent(due(store, "other"), status="0x0000")
    assert store.given_up(None) == store.given_up(["1.1"]) == [("of 1.1", "blob 1.1 a")]
    assert store.given_up(["1.2"]) == []
    assert store.retry(["1.2"], names, ["of 1.1"]).remade == 0
    assert store.retry(None, names, ["of 1.1"]).remade == 1
    assert states(store) == ["queued", "done"]
    assert due(store, "pacs").source == "1.2", "the lost one waits until it is made"
    (item,) = store.claim("w", 8)
    again = [output("2.1.1", blob="made again")]
    store.complete("w", item.id, outputs=again, destinations=names, summary={})
    assert due(store, "pacs").output.blob == "made again"
    waiting = due(store, "other")
    assert waiting.source == ("1.2" if elsewhere else "1.1"), "who has it is not sent other bytes"


def test_a_later_release_makes_a_lost_result_under_another_uid(store):
    store.receive(arrival("1.1"))
    (item,) = store.claim("w", 8)
    store.complete("w", item.id, outputs=[output("2.1")], destinations=["pacs"], summary={"p": 1})
    store.give_up(due(store, "pacs"), status=None, detail="its bytes are missing")
    assert store.retry(None, ["pacs"], ["out"]).remade == 1
    assert store.receive(arrival("1.1", "other")) is Receipt.CONFLICT
    (item,) = store.claim("w", 8)
    store.bury("w", item.id, DeadReason.FAILED, "")
    assert store.receive(arrival("1.1", "third")) is Receipt.CONFLICT, "its results may be out"
    assert store.instances()[0].summary == {"p": 1}
    store.retry(None, ["pacs"])
    (item,) = store.claim("w", 8)
    again = [output("2.2", blob="new")]
    store.complete("w", item.id, outputs=again, destinations=["pacs"], summary={})
    assert due(store, "pacs").output.sop_instance_uid == "2.2"
    assert sum(store.pending_by_destination().values()) == 1, (
        "the old one is not sent, nor lost again and again"
    )
    assert store.retry(None, ["pacs", "new"]).added == 1, "the new one goes to the new destination"
    assert due(store, "new").output.sop_instance_uid == "2.2"
    assert sum(store.pending_by_destination().values()) == 2


def test_an_output_that_comes_back_is_sent(store):
    """A setting was changed, and changed back."""
    store.receive(arrival("1.1"))
    (item,) = store.claim("w", 8)
    store.complete("w", item.id, outputs=[output("2.1")], destinations=["pacs"], summary={})
    for uid in ("2.2", "2.1"):
        store.give_up(due(store, "pacs"), status=None, detail="its bytes are missing")
        assert store.retry(None, ["pacs"], ["out"]).remade == 1
        (item,) = store.claim("w", 8)
        store.complete("w", item.id, outputs=[output(uid)], destinations=["pacs"], summary={})
    assert due(store, "pacs").output.sop_instance_uid == "2.1"
    assert store.retry(None, ["pacs", "new"]).added == 1
    assert due(store, "new").output.sop_instance_uid == "2.1"


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc/locks")
def test_a_second_connection_of_a_process_leaves_the_locks_of_the_first(tmp_path):
    """Without them another process takes itself for the last and removes the log of SQLite."""
    first = Store(tmp_path)
    file = f":{(tmp_path / 'store.db').stat().st_ino} "

    def locked() -> bool:
        return file in Path("/proc/locks").read_text(encoding="ascii")

    assert locked()
    second = Store(tmp_path)
    assert locked()
    second.close()
    first.close()


def test_found_by_uid_or_by_the_name_of_the_log(store):
    store.receive(arrival("1.1"))
    (item,) = store.claim("w", 8)
    store.complete("w", item.id, outputs=[output("2.1")], destinations=["pacs"], summary={})
    keys = ["1.1", instance_name("1.1"), "2.1", instance_name("2.1")]
    assert [store.find(key) for key in keys] == ["1.1"] * 4
    assert store.find("1.2") is None


def test_passed_over(store):
    for uid in ("1.1", "1.2", "1.3"):
        store.receive(arrival(uid))
    first = store.instances()[0].id
    assert [item.sop_instance_uid for item in store.claim("w", 1, without={first})] == ["1.2"]
    store.release("w", alone=True)
    assert [item.sop_instance_uid for item in store.claim("w", 8)] == ["1.2"]
    store.release("w")
    second = store.instances()[1].id
    assert store.claim("w", 8, without={first, second})[0].sop_instance_uid == "1.3"


def test_first_committed_bytes_win(store):
    store.receive(arrival("1.1"))
    store.receive(arrival("1.2"))
    one, two = store.claim("w", 8)
    done = {"destinations": ["pacs", "results"], "summary": {"probability": 0.5}}
    assert store.complete("w", one.id, outputs=[output("2.1", "first")], **done)
    assert not store.complete("w", one.id, outputs=[output("2.1", "second")], **done)
    assert store.complete("w", two.id, outputs=[output("2.1", "third")], **done)
    for destination in ("pacs", "results"):
        parcel = due(store, destination)
        assert parcel is not None
        assert parcel.output.blob == "first"
        store.sent(parcel, status="0x0000")
        assert due(store, destination) is None
    assert store.instances()[0].summary == {"probability": 0.5}
    assert [d.state for d in store.instances()[0].deliveries] == ["sent", "sent"]
    assert store.pending_by_destination() == {}


def test_an_error_in_the_middle_changes_nothing(store):
    store.receive(arrival("1.1"))
    (item,) = store.claim("w", 8)
    done = {"destinations": ["pacs"], "outputs": [output("2.1")]}
    with pytest.raises(ValueError, match="Out of range float"):
        store.complete("w", item.id, summary={"probability": float("nan")}, **done)
    assert states(store) == ["inferring"]
    assert store.pending_by_destination() == {}


def test_a_lost_lease_changes_nothing(store):
    store.receive(arrival("1.1"))
    (item,) = store.claim("old", 8)
    store.recover(crashed=False)
    assert not store.refuse("old", item.id, Reason.NOT_CHEST, "")
    assert not store.bury("old", item.id, DeadReason.BAD_OUTPUT, "")
    assert not store.fail("old", item.id, "")
    assert not store.complete("old", item.id, outputs=[], destinations=[], summary={})
    store.release("old")
    assert states(store) == ["queued"]


def test_poison_in_a_batch_is_found_and_costs_no_other(store):
    for number in range(4):
        store.receive(arrival(f"1.{number}"))
    poison = store.instances()[2].id
    assert len(store.claim("start 0", 8)) == 4
    crashes = 0
    while True:  # each turn is a worker that crashes on the poison, or ends the rest
        crashes += 1
        store.recover(crashed=True)
        lease = f"start {crashes}"
        while batch := store.claim(lease, 8):
            assert len(batch) == 1
            if batch[0].id == poison:
                break
            store.complete(lease, batch[0].id, outputs=[], destinations=[], summary={})
        if not batch:
            break
    assert crashes == MAX_STRIKES + 1
    assert states(store) == ["done", "done", "dead", "done"]
    assert store.instances()[2].reason == "worker_crash"


def test_being_interrupted_with_the_whole_service_is_not_held_against_it_soon(store):
    store.receive(arrival("1.1"))
    for turn in range(MAX_INTERRUPTIONS):
        assert states(store) == ["queued"], turn
        store.claim(f"start {turn}", 8)
        store.recover(crashed=False)
    assert states(store) == ["dead"]


def test_errors_are_tried_again_alone_until_the_limit(store):
    store.receive(arrival("1.1"))
    for strike in range(MAX_STRIKES):
        assert states(store) == ["queued"], strike
        (item,) = store.claim("w", 8)
        assert store.fail("w", item.id, "ValueError at x.py:1")
    (item,) = store.instances()
    assert (item.state, item.reason, item.detail) == ("dead", "failed", "ValueError at x.py:1")
    assert item.attempts == MAX_STRIKES


def test_released_uncharged(store):
    store.receive(arrival("1.1"))
    for _ in range(3 * MAX_STRIKES):
        assert len(store.claim("w", 8)) == 1
        store.release("w")
    assert states(store) == ["queued"]


def test_deliveries_of_destinations_are_apart(store):
    store.receive(arrival("1.1"))
    (item,) = store.claim("w", 8)
    outputs = [output("2.1"), output("2.2", kind="sc")]
    store.complete("w", item.id, outputs=outputs, destinations=["a", "b"], summary={})
    first = due(store, "a")
    assert first is not None
    store.postpone(first, status="0xA700", detail="full", retry_at=1e9 + 60, rejected=False)
    second = due(store, "a")
    assert second is not None
    assert second.output.sop_instance_uid == "2.2"
    store.give_up(second, status="0xC000", detail="cannot understand")
    assert due(store, "a") is None
    again = due(store, "a", 1e9 + 61)
    assert again is not None
    assert (again.attempts, again.rejections) == (1, 0)
    assert due(store, "a", 1e9 - 1000) is not None  # a clock that was set back
    assert store.pending_syntaxes("b") == [("1.2.3", "1.2.840.10008.1.2.1")]
    shown = {(d.destination, d.kind): (d.state, d.status) for d in store.instances()[0].deliveries}
    assert shown == {
        ("a", "seg"): (DeliveryState.PENDING, "0xA700"),
        ("b", "seg"): (DeliveryState.PENDING, None),
        ("a", "sc"): (DeliveryState.DEAD, "0xC000"),
        ("b", "sc"): (DeliveryState.PENDING, None),
    }


def test_readers_see_it_while_it_is_open_and_when_it_is_not(tmp_path):
    with pytest.raises(StateError, match="does not exist"):
        Store(tmp_path, read_only=True)
    writer = Store(tmp_path)
    reader = Store(tmp_path, read_only=True)
    before = reader.data_version()
    writer.receive(arrival("1.1"))
    assert reader.data_version() != before
    assert states(reader) == ["queued"]
    with pytest.raises(Exception, match="readonly"):
        reader.receive(arrival("1.2"))
    reader.close()
    writer.close()
    reader = Store(tmp_path, read_only=True)
    assert states(reader) == ["queued"]
    assert reader.counts() == {InstanceState.QUEUED: 1}
    reader.close()


def test_a_newer_database_is_left_alone(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StateError, match="newer release"):
        Store(tmp_path)


def test_a_damaged_database_is_refused(tmp_path):
    store = Store(tmp_path)
    for number in range(200):
        store.receive(arrival(f"1.{number}"))
    store.check_integrity()
    store.close()
    path = tmp_path / "store.db"
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(StateError, match="damaged"):
        Store(tmp_path).check_integrity()
    path.write_bytes(b"this is not a database, " * 1000)
    with pytest.raises(StateError):
        Store(tmp_path)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.40.1", ("DELETE", "EXTRA")),
        ("3.51.2", ("DELETE", "EXTRA")),
        ("3.51.3", ("WAL", "FULL")),
        ("3.54.1", ("WAL", "FULL")),
    ],
)
def test_wal_only_where_it_loses_nothing(version, expected):
    assert durability(version) == expected


def test_commits_are_on_the_disk(tmp_path):
    store = Store(tmp_path)
    assert store._db.rows("PRAGMA journal_mode") == [("wal",)]
    assert store._db.rows("PRAGMA synchronous") == [(2,)]  # FULL
    store.close()


EXPLAINED = {"queued", "inferring", "done"}


class StoreMachine(RuleBasedStateMachine):
    """Arrivals, workers that crash, deliveries: nothing acknowledged is lost or done twice."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name))
        self.lease = 0
        self.acknowledged: set[tuple[str, str]] = set()
        self.held: list[int] = []
        self.alone = False
        self.ended: dict[int, str] = {}
        self.frozen: dict[str, str] = {}
        self.sent: set[str] = set()
        self.given_up: set[str] = set()
        self.serial = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    uids = st.sampled_from([f"1.{n}" for n in range(5)])
    contents = st.sampled_from("ab")

    @rule(uid=uids, content=contents)
    def receive(self, uid: str, content: str) -> None:
        before = {
            item.content_digest: item
            for item in self.store.instances(sop_instance_uid=uid)
            if item.blob
        }
        receipt = self.store.receive(arrival(uid, content))
        known = (uid, content) in self.acknowledged
        assert (receipt is Receipt.DUPLICATE) == known
        self.acknowledged.add((uid, content))
        rivals = [i for digest, i in before.items() if digest != content and i.state in EXPLAINED]
        (after,) = [
            item
            for item in self.store.instances(sop_instance_uid=uid)
            if item.content_digest == content
        ]
        if not known or before[content].state in {"dead", "conflict"}:
            kept = before[content].state if known else "conflict"
            assert after.state == (kept if rivals else "queued")
            if after.state == "queued":
                self.ended.pop(after.id, None)

    @rule(uid=st.none() | uids)
    def retry(self, uid: str | None) -> None:
        dead = {item.id for item in self.store.instances(state=InstanceState.DEAD)}
        done = self.store.retry(None if uid is None else [uid], ["pacs"])
        queued = {i.id for i in self.store.instances(state=InstanceState.QUEUED)} & dead
        assert len(queued) == done.queued
        for key in queued:
            self.ended.pop(key, None)
        if uid is None:
            assert done.held + done.queued == len(dead)
            assert done.pending == len(self.given_up)
            self.given_up.clear()
        else:
            self.given_up.discard(f"2.{uid}")

    @rule(uid=uids, content=contents)
    def refuse_arrival(self, uid: str, content: str) -> None:
        self.store.refuse_arrival(rejection(uid, content))

    @precondition(lambda self: not self.held)
    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        batch = self.store.claim(str(self.lease), limit)
        assert len(batch) <= limit
        assert not {item.id for item in batch} & set(self.ended)
        self.held = [item.id for item in batch]
        self.alone = len(batch) == 1

    @precondition(lambda self: self.held)
    @rule(crashed=st.booleans())
    def worker_ends(self, crashed: bool) -> None:
        self.lease += 1
        self.held = []
        self.store.recover(crashed=crashed)
        self.note_dead()

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.store.release(str(self.lease), alone=True)
        self.held = []

    @precondition(lambda self: self.held and self.alone)
    @rule()
    def fail(self) -> None:
        assert self.store.fail(str(self.lease), self.held.pop(), "error")
        self.note_dead()

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["done", "refused", "dead"]))
    def end(self, how: str) -> None:
        key, lease = self.held.pop(), str(self.lease)
        self.ended[key] = how
        if how == "refused":
            assert self.store.refuse(lease, key, Reason.NOT_CHEST, "")
        elif how == "dead":
            assert self.store.bury(lease, key, DeadReason.BAD_OUTPUT, "")
        else:
            self.serial += 1
            (item,) = [item for item in self.store.instances() if item.id == key]
            made = output(f"2.{item.sop_instance_uid}", f"bytes {self.serial}")
            self.frozen.setdefault(made.sop_instance_uid, made.blob)
            done = {"outputs": [made], "destinations": ["pacs"], "summary": {}}
            assert self.store.complete(lease, key, **done)

    @rule(answer=st.sampled_from(["sent", "later", "rejected"]))
    def deliver(self, answer: str) -> None:
        parcel = due(self.store, "pacs")
        if parcel is None:
            return
        uid = parcel.output.sop_instance_uid
        assert parcel.output.blob == self.frozen[uid]
        assert uid not in self.sent | self.given_up
        if answer == "sent":
            self.store.sent(parcel, status="0x0000")
            self.sent.add(uid)
        elif answer == "later":
            self.store.postpone(parcel, status=None, detail="", retry_at=0, rejected=False)
        else:
            self.store.give_up(parcel, status="0xC000", detail="")
            self.given_up.add(uid)

    def note_dead(self) -> None:
        for item in self.store.instances(state=InstanceState.DEAD):
            self.ended.setdefault(item.id, "dead")

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        if not hasattr(self, "store"):
            return
        items = self.store.instances()
        kept = {(item.sop_instance_uid, item.content_digest) for item in items if item.blob}
        assert kept == self.acknowledged
        for item in items:
            if item.id in self.ended:
                assert item.state == self.ended[item.id]
        explained = [item.sop_instance_uid for item in items if item.state in EXPLAINED]
        assert len(explained) == len(set(explained)), "two contents of one UID"
        inferring = {item.id for item in items if item.state == "inferring"}
        assert inferring == set(self.held)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
