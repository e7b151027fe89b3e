"""How a long run reports: the loop calls, the command line draws."""

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
