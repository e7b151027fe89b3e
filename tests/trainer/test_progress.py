"""The log of a run: what it keeps, and that it never ends one."""

from pathlib import Path

from trainer.progress import Logged, Silent


class Heard(Silent):
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.told.append(f"{name} {total}")

    def step(self, text: str = "", *, done: int = 1) -> None:
        self.told.append(f"{text} {done}")

    def note(self, text: str) -> None:
        self.told.append(text)


def lines(path: Path) -> list[str]:
    """The lines without their time."""
    return [line.partition("  ")[2] for line in path.read_text("utf-8").splitlines()]


def test_what_was_told_before_there_was_a_file_comes_first(tmp_path: Path) -> None:
    path, heard = tmp_path / "train.log", Heard()
    log = Logged(heard)
    log.note("read")
    log.write_to(path)
    assert lines(path) == ["read"]
    log.stage("classifier", 12)
    log.step("loss 0.5", done=2)
    log.line("classifier, epoch 1: auc 0.9")
    assert lines(path) == ["read", "classifier: 12 steps", "classifier, epoch 1: auc 0.9"]
    assert heard.told == ["read", "classifier 12", "loss 0.5 2"]


def test_a_run_that_goes_on_appends(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    for text in ("first", "second"):
        log = Logged(Silent())
        log.write_to(path)
        log.line(text)
    assert lines(path) == ["first", "second"]


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    log = Logged(Silent())
    log.write_to(tmp_path / "absent" / "train.log")
    log.note("nobody reads it")
    assert not (tmp_path / "absent").exists()
