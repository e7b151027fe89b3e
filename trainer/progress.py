"""How a long run reports: the loop calls, the command line draws, a log file keeps."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class Progress(Protocol):
    """Told of every stage of a run; the loop itself never prints."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` equal steps begins; the one before it is over."""

    def step(self, text: str = "", *, done: int = 1) -> None:
        """`done` further steps are done; `text` is the newest figure."""

    def note(self, text: str) -> None:
        """A finding that stays on the screen."""


class Silent:
    """Reports to nobody."""

    def stage(self, name: str, total: int) -> None:
        """Nothing."""

    def step(self, text: str = "", *, done: int = 1) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Logged:
    """Tells another `Progress` everything, and keeps stages, notes and lines with their time.

    The file can be read while the run goes on. If it cannot be written it is left as it is: an
    error that matters is met by the files that have to be there.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._path: Path | None = None
        self._waiting: list[str] = []

    def write_to(self, path: Path) -> None:
        """Appends to this file from now on, first the lines so far."""
        self._path = path
        self._write()

    def stage(self, name: str, total: int) -> None:
        """A line, and the stage of the other."""
        self.line(f"{name}: {total} steps")
        self._progress.stage(name, total)

    def step(self, text: str = "", *, done: int = 1) -> None:
        """A step of the other, and no line."""
        self._progress.step(text, done=done)

    def note(self, text: str) -> None:
        """A line, and the note of the other."""
        self.line(text)
        self._progress.note(text)

    def line(self, text: str) -> None:
        """A line of the file alone."""
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        self._waiting.append(f"{now}  {text}\n")
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.writelines(self._waiting)
        self._waiting.clear()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class Bars:
    """A bar a stage, with rate and time left; see `Progress`."""

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        """A new bar; the one before it is over."""
        if self._task is not None:
            done = self._bars.tasks[self._task].completed
            self._bars.update(self._task, total=done)  # it may have stopped early
        self._task = self._bars.add_task(name, total=total, text="")

    def step(self, text: str = "", *, done: int = 1) -> None:
        """Moves the bar on."""
        if self._task is not None:
            self._bars.update(self._task, advance=done, text=text)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)
