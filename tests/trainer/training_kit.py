"""What the tests of training runs share."""

from collections.abc import Sequence
from typing import Any

import pytest

from trainer.cli import main
from trainer.training import loop as train


def stopped_after(steps: int, arguments: Sequence[str]) -> int:
    """Exit status of a `nemt-train` that is interrupted after so many steps, each of them saved."""
    left, whole = iter(range(steps)), train.take_step

    def take_step(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", -1.0)
        patch.setattr(train, "take_step", take_step)
        return main(arguments)
