"""What the loop trains: a stage, what it is given at each step, and what it gives back."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .checkpoint import State, Weights
from .draws import Draws


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some training examples.

    images: (B, C, S, S) float32 in [0, 1], augmented.
    rows: (B,) their numbers among the training examples.
    draws: their random numbers in this step.
    done: share of the stage's steps that are done, 0 to 1.
    """

    images: Tensor
    rows: NDArray[np.intp]
    draws: Draws
    done: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """Loss of every image, (B,), and figures to show, each (B,)."""

    loss: Tensor
    figures: dict[str, Tensor]


class Stage(Protocol):
    """What the loop trains.

    name: as it stands in figures and checkpoints.
    epochs: epochs at most.
    patience: epochs without one worth keeping after which it ends.
    module: maps a `Batch` to `Losses`.
    optimiser: has the weights of the module that are trained.
    advice: what to try if the loss is not finite.
    """

    name: str
    epochs: int
    patience: int
    module: nn.Module
    optimiser: torch.optim.Optimizer
    advice: str

    def order(self, epoch: int) -> NDArray[np.intp]:
        """The training examples of an epoch, (N,) row numbers, as they are taken."""

    def augmented(self, images: Tensor, draws: Draws) -> Tensor:
        """Training images (B, C, S, S) in [0, 1] as the loss sees them, of the same shape."""

    def begin_epoch(self) -> None:
        """Sets the modules to training."""

    def before_step(self, done: float) -> None:
        """A step follows; `done` is the share of all steps that are done."""

    def after_step(self) -> None:
        """The weights have moved."""

    def validate(self, done: float) -> tuple[float, dict[str, float]]:
        """Score, of which less is better, and figures. Raises `TrainingError` on a collapse."""

    def tolerance(self, best: float) -> float:
        """How much worse than the best score a later epoch may be and still be kept instead."""

    def weights(self) -> Weights:
        """What was validated, and may be kept."""

    def keep(self, weights: Weights | None) -> None:
        """Ends the stage, frozen with these weights, or with those that the network has."""

    def state(self) -> State:
        """What else moves beside network and optimiser."""

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
