"""A state folder of an earlier release, taken over by the real service."""

from tests.service.service_kit import Pacs, free_port, output_uid, wait_for
from tests.service.test_serve import instances, running, service_settings, settled
from tests.state import version_1


def test_what_release_0_7_left_is_explained_and_delivered(tmp_path):
    with Pacs(free_port()).running() as pacs:
        settings = service_settings(tmp_path, pacs)
        state_dir = settings.state.dir
        written = version_1.write(state_dir, "pacs")
        before = version_1.dump(state_dir / "store.db")
        with running(settings):
            wait_for(lambda: settled(settings), "the end of all that was queued")
        listed = {item.id: item for item in instances(settings)}
    states = [str(listed[number].state) for number in range(1, len(version_1.STATES) + 1)]
    assert states == ["done", "done", "done", "dead", "conflict", "refused", "refused"]
    images = (written.images["queued"], written.images["inferring"])
    explained = {output_uid(uid, kind) for uid in images for kind in ("seg", "sc")}
    # The output that was sent before is not sent again, nor is the one that was given up.
    assert set(pacs.received) == explained | {written.outputs["pending"]}
    assert {len(contents) for contents in pacs.received.values()} == {1}
    ends = {item.output_uid: str(item.state) for item in listed[3].deliveries}
    assert ends == {
        written.outputs["pending"]: "sent",
        written.outputs["sent"]: "sent",
        written.outputs["dead"]: "dead",
    }
    copy = state_dir / "store.db.v1"
    assert version_1.version(copy) == 1
    assert version_1.dump(copy) == before
    assert version_1.version(state_dir / "store.db") == 2
