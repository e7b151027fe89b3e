"""How a long run reports: the loop calls, the command line draws."""

from typing import Protocol


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
