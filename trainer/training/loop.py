"""The loop that every stage of a run goes through; it reads top to bottom.

A stage says what is trained, by which loss, and how well it does on the validation split. The loop
does the rest: batches, precision, gradients over parts of a batch and over processes, what is best
so far, when to stop, and checkpoints. All that is random comes from `Draws`, so that a run that
goes on after a kill ends with the same bits.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..progress import Progress, Silent
from .checkpoint import CheckpointFile, Epoch, Standing, Weights
from .distributed import Team
from .draws import Draws
from .precision import mixed_precision
from .recipe import TrainingConfig

SAVE_EVERY = 600.0
"""Seconds after which a checkpoint is written within an epoch; each epoch's end writes one too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some training examples.

    images: (B, C, S, S) float32 in [0, 1], augmented where that is asked. rows: their numbers.
    draws: their random numbers in this step. done: share of the stage's steps that are done.
    """

    images: Tensor
    rows: NDArray[np.intp]
    draws: Draws
    done: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Losses:
    """Loss of every image (B,) and figures to show, each (B,)."""

    loss: Tensor
    figures: dict[str, Tensor]


class Stage(Protocol):
    """What the loop trains. `module` maps a `Batch` to `Losses`; its weights are the optimiser's.

    patience: epochs without one worth keeping after which it ends. advice: what to try where the
    loss is not finite.
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

    def state(self) -> dict[str, Any]:
        """What else moves beside network and optimiser."""

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


@dataclass(kw_only=True)
class Run:
    """What the stages of a run share. epochs: the record so far; `record` is told of each new one.

    checkpoints: None where nothing is written. goes_on: a checkpoint is there to go on from.
    """

    config: TrainingConfig
    network: ExplainedNetwork
    team: Team
    checkpoints: CheckpointFile | None
    progress: Progress
    record: Callable[[list[Epoch]], None]
    epochs: list[Epoch]
    goes_on: bool

    @classmethod
    def bare(cls, config: TrainingConfig, network: ExplainedNetwork, team: Team) -> "Run":
        """A run that writes and reports nothing."""
        return cls(
            config=config,
            network=network,
            team=team,
            checkpoints=None,
            progress=Silent(),
            record=lambda _epochs: None,
            epochs=[],
            goes_on=False,
        )


def fit(stage: Stage, examples: Examples, run: Run) -> None:
    """Trains a stage to its end, or from where the checkpoint says it stands.

    Raises `TrainingError` where the loss is not finite, a mask collapses or no epoch has a score.
    """
    config, team = run.config, run.team
    standing = _resume(stage, run)
    if standing is None:
        stage.keep(None)  # the checkpoint is of a later stage
        return
    module = team.wrap(stage.module)
    steps = len(batches(stage.order(1), config.batch))
    run.progress.stage(stage.name, stage.epochs * steps)
    run.progress.step(done=(standing.epoch - 1) * steps + standing.done)
    while standing.epoch <= stage.epochs and not standing.over:
        stage.begin_epoch()
        planned = batches(stage.order(standing.epoch), config.batch)[standing.done :]
        saved = time.monotonic()
        for rows, images in read_ahead(examples, planned, team):
            done = ((standing.epoch - 1) * steps + standing.done) / (stage.epochs * steps)
            stage.before_step(done)
            key = (config.seed, stage.name, standing.epoch, standing.done)
            loss, text = take_step(stage, module, rows, images, key, done, run)
            team.average_statistics(module)
            stage.after_step()
            standing.losses.append(loss)
            standing.done += 1
            run.progress.step(f"loss {loss:.3f}{text}")
            if time.monotonic() - saved > SAVE_EVERY and standing.done < steps:
                _save(stage, standing, run)
                saved = time.monotonic()
        _end_epoch(stage, standing, run)
    if not standing.kept_epoch:
        raise TrainingError(
            f"no epoch of the {stage.name} gave a score to keep it by: {stage.advice}"
        )
    stage.keep(standing.kept_weights)
    run.progress.note(f"{stage.name}: kept as after epoch {standing.kept_epoch}")


def batches(order: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """An epoch's examples in batches; a last one that is not full is left out."""
    count = len(order)
    whole = count - count % size if count >= size else count
    return [order[i : i + size] for i in range(0, whole, size)]


def read_ahead(
    examples: Examples, planned: list[NDArray[np.intp]], team: Team
) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """Each batch's rows and this process's images of it, the next being read meanwhile."""

    def read(rows: NDArray[np.intp]) -> Tensor:
        images = torch.from_numpy(examples.take(team.share(rows)))
        return images.pin_memory() if team.device.type == "cuda" else images

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, planned[0]) if planned else None
        for i, rows in enumerate(planned):
            assert coming is not None
            images = coming.result()
            if i + 1 < len(planned):
                coming = reader.submit(read, planned[i + 1])
            yield rows, images.to(team.device, non_blocking=True)


def take_step(
    stage: Stage,
    module: nn.Module,
    rows: NDArray[np.intp],
    images: Tensor,
    key: tuple[int, str, int, int],
    done: float,
    run: Run,
) -> tuple[float, str]:
    """One step of the optimiser; the mean loss over the whole batch of all processes.

    key: of its random numbers; the place in the whole batch is an example's, which an epoch may
    take more than once.
    """
    config, team = run.config, run.team
    own, places = team.share(rows), team.share(np.arange(len(rows)))
    parts = np.array_split(np.arange(len(own)), min(config.accumulate, len(own)))
    stage.optimiser.zero_grad()
    loss = torch.zeros((), dtype=torch.float64, device=team.device)
    figures: dict[str, float] = {}
    for number, part in enumerate(parts, start=1):
        draws = Draws(key, places[part])
        with team.averaging(module, now=number == len(parts)):
            with mixed_precision(config.device, enabled=config.bfloat16):
                seen = stage.augmented(images[part[0] : part[-1] + 1], draws)
                losses: Losses = module(Batch(images=seen, rows=own[part], draws=draws, done=done))
            total = losses.loss.float().sum()
            # gradients are averaged over the processes: this is the mean over the whole batch
            scaled = total * (team.size / len(rows))
            scaled.backward()  # type: ignore[no-untyped-call]
        loss += total.detach().double()
        figures = {k: float(v.float().mean()) for k, v in losses.figures.items()}
    mean = team.total(loss) / len(rows)
    if not np.isfinite(mean):
        raise TrainingError(f"the loss of the {stage.name} is not finite (NaN): {stage.advice}")
    stage.optimiser.step()
    return mean, "".join(f"  {name} {value:.2f}" for name, value in figures.items())


def _end_epoch(stage: Stage, standing: Standing, run: Run) -> None:
    score, figures = stage.validate(standing.epoch / stage.epochs)
    score = run.team.agree(score)
    figures = {"train_loss": float(np.mean(standing.losses)), **figures}
    run.epochs.append(Epoch(part=stage.name, number=standing.epoch, figures=figures))
    if run.team.first:
        run.record(run.epochs)
    best = standing.best_score = min(standing.best_score, score)
    if np.isfinite(score) and score <= best + stage.tolerance(best):
        standing.kept_epoch = standing.epoch
        standing.kept_weights = {k: v.detach().clone() for k, v in stage.weights().items()}
    late = standing.epoch - standing.kept_epoch >= stage.patience
    standing.over = bool(standing.kept_epoch) and late
    standing.epoch, standing.done, standing.losses = standing.epoch + 1, 0, []
    _save(stage, standing, run)


def _save(stage: Stage, standing: Standing, run: Run) -> None:
    if run.team.first and run.checkpoints:
        states = {
            "network": run.network.state_dict(),
            "optimiser": stage.optimiser.state_dict(),
            "stage": stage.state(),
        }
        run.checkpoints.save(standing, run.epochs, states)


def _resume(stage: Stage, run: Run) -> Standing | None:
    """Where the stage stands: at its start, or where the checkpoint says; None where it is over."""
    found = run.checkpoints.load() if run.checkpoints and run.goes_on else None
    if found is None:
        standing = Standing(stage=stage.name)
        _save(stage, standing, run)
        return standing
    standing, epochs, states = found
    run.network.load_state_dict(states["network"])
    run.epochs[:] = epochs
    if standing.stage != stage.name:
        return None
    stage.optimiser.load_state_dict(states["optimiser"])
    stage.restore(states["stage"])
    run.goes_on = False
    run.progress.note(
        f"{stage.name}: going on in epoch {standing.epoch} after {standing.done} steps"
    )
    return standing
