"""Where a run stands, in one file that is replaced as a whole: a kill leaves the old or the new."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from nemt_dicom.errors import TrainingError
from nemt_dicom.files import replacing

Weights = dict[str, Tensor]

State = dict[str, Any]
"""Tensors and plain values by name: a state dict, or several."""

CHECKPOINT = "checkpoint.pt"
"""Its name in the folder of a run."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of `metrics.csv`: the part trained, its epoch from 1, and its figures."""

    part: str
    number: int
    figures: dict[str, float]


@dataclass(kw_only=True)
class Standing:
    """How far a stage has come.

    stage: its name.
    epoch: number of the epoch under way, from 1.
    done: number of its steps that are done.
    losses: mean loss of each of these steps.
    best_score: smallest validation score so far.
    kept_epoch: number of the epoch that would be kept; 0: none yet.
    kept_weights: its weights.
    over: whether nothing is left to train.
    """

    stage: str
    epoch: int = 1
    done: int = 0
    losses: list[float] = field(default_factory=list)
    best_score: float = float("inf")
    kept_epoch: int = 0
    kept_weights: Weights = field(default_factory=dict)
    over: bool = False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises `TrainingError` if `path`, a file or a folder, cannot be written inside."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch names no cause when a file ends too early, and raises while that is handled
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError | SafetensorError):
            raise
        free = shutil.disk_usage(path.parent).free // 2**20
        raise TrainingError(
            f"{path} cannot be written ({cause}), and {free} MiB are free on its disk: make room "
            "and go on with --resume"
        ) from error


class CheckpointFile:
    """`checkpoint.pt` of a run: tensors and plain values only, read without pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, standing: Standing, epochs: list[Epoch], states: State) -> None:
        """Replaces the file. Raises `TrainingError` if the disk is full.

        states: state dicts of the network, of the optimiser and of whatever else moves.
        """
        content = {
            "standing": vars(standing),
            "epochs": [asdict(epoch) for epoch in epochs],
            "states": states,
        }
        with writing(self.path), replacing(self.path) as draft, draft.open("wb") as file:
            torch.save(content, file)

    def load(self) -> tuple[Standing, list[Epoch], State] | None:
        """What `save` was told last; None if there is no file. Raises `TrainingError`."""
        if not self.path.is_file():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            return (
                Standing(**content["standing"]),
                [Epoch(**epoch) for epoch in content["epochs"]],
                content["states"],
            )
        except Exception as error:
            raise TrainingError(
                f"{self.path}: cannot be resumed from ({type(error).__name__}); start anew with "
                "another --out"
            ) from error
