"""The loop that every stage of a run goes through; it reads top to bottom.

A stage says what is trained, by which loss, and how well it does on the validation split. The loop
does the rest: batches, precision, gradients over processes, what is best so far, when to stop, and
checkpoints. All that is random comes from `Draws`, so that a run that goes on after a kill ends
with the same bits.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import numpy as np
import torch
from numpy.typing import NDArray
from prodigyopt import Prodigy
from torch import Tensor, nn

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..progress import Progress, Silent
from .checkpoint import CheckpointFile, Epoch, Standing
from .distributed import Team
from .draws import Draws
from .precision import mixed_precision
from .recipe import Recipe
from .stage import Batch, Losses, Stage

SAVE_EVERY = 600.0
"""Seconds between two checkpoints within an epoch, usually; each epoch's end writes one, too."""


@dataclass(kw_only=True)
class Run:
    """What the stages of a run share.

    recipe: what the run is told.
    network: target model and explanation module.
    team: the processes of the run.
    checkpoints: file to write to; None: nothing is written.
    progress: told of stages and steps.
    record: told of all epochs after each one, in the first process.
    epochs: the record so far.
    goes_on: whether there is a checkpoint to go on from.
    save_every: seconds between two checkpoints within an epoch.
    """

    recipe: Recipe
    network: ExplainedNetwork
    team: Team
    checkpoints: CheckpointFile | None
    progress: Progress
    record: Callable[[list[Epoch]], None]
    epochs: list[Epoch]
    goes_on: bool
    save_every: float = SAVE_EVERY

    @classmethod
    def bare(cls, recipe: Recipe, network: ExplainedNetwork, team: Team) -> "Run":
        """A run that writes and reports nothing."""
        return cls(
            recipe=recipe,
            network=network,
            team=team,
            checkpoints=None,
            progress=Silent(),
            record=lambda _epochs: None,
            epochs=[],
            goes_on=False,
        )


def prodigy(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Prodigy:
    """Prodigy with the safeguarded warm-up (paper, section 4.2; lr is 1 there)."""
    with redirect_stdout(StringIO()):  # it prints its settings
        return Prodigy(parameters, lr=lr, weight_decay=weight_decay, safeguard_warmup=True)


def fit(stage: Stage, examples: Examples, run: Run) -> None:
    """Trains a stage to its end, from its beginning or from the checkpoint.

    Raises `TrainingError` if the loss is not finite, a mask collapses or no epoch has a score.
    """
    standing = _resume(stage, run)
    if standing is None:
        stage.keep(None)  # the checkpoint is of a later stage
        return
    module = run.team.wrap(stage.module)
    steps = len(batches(stage.order(1), run.recipe.run.batch))
    run.progress.stage(stage.name, stage.epochs * steps)
    run.progress.step(done=(standing.epoch - 1) * steps + standing.done)
    while standing.epoch <= stage.epochs and not standing.over:
        _train_epoch(stage, module, examples, standing, steps, run)
        _end_epoch(stage, standing, run)
    if not standing.kept_epoch:
        raise TrainingError(
            f"no epoch of the {stage.name} gave a score to keep it by: {stage.advice}"
        )
    stage.keep(standing.kept_weights)
    run.progress.note(f"{stage.name}: kept as after epoch {standing.kept_epoch}")


def _train_epoch(
    stage: Stage, module: nn.Module, examples: Examples, standing: Standing, steps: int, run: Run
) -> None:
    """The steps of an epoch that are not done yet. steps: of a whole epoch."""
    stage.begin_epoch()
    order = stage.order(standing.epoch)
    planned = batches(order, run.recipe.run.batch)[standing.done :]
    saved = time.monotonic()
    for rows, images in read_ahead(examples, planned, run.team):
        done = ((standing.epoch - 1) * steps + standing.done) / (stage.epochs * steps)
        stage.before_step(done)
        key = (run.recipe.run.seed, stage.name, standing.epoch, standing.done)
        loss, text = take_step(stage, module, rows, images, key, done, run)
        run.team.average_statistics(module)
        stage.after_step()
        standing.losses.append(loss)
        standing.done += 1
        run.progress.step(f"loss {loss:.3f}{text}")
        if time.monotonic() - saved > run.save_every and standing.done < steps:
            _save(stage, standing, run)
            saved = time.monotonic()


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
    """One step of the optimiser: the mean loss over the whole batch of all processes, and a text.

    rows: (B,) of the whole batch. images: this process's share of it, (b, C, S, S).
    key: of its random numbers; beside it an example's place in the whole batch counts, for an epoch
        may take an example more than once.
    done: share of the stage's steps that are done.
    """
    computing, team = run.recipe.run, run.team
    share, places = team.share(rows), team.share(np.arange(len(rows)))
    draws = Draws(key, places)
    stage.optimiser.zero_grad()
    with mixed_precision(computing.device, enabled=computing.bfloat16 is True):
        seen = stage.augmented(images, draws)
        losses: Losses = module(Batch(images=seen, rows=share, draws=draws, done=done))
    total = losses.loss.float().sum()
    # gradients are averaged over the processes: this is the mean over the whole batch
    scaled = total * (team.size / len(rows))
    scaled.backward()  # type: ignore[no-untyped-call]
    mean = team.total(total.detach().double()) / len(rows)
    if not np.isfinite(mean):
        raise TrainingError(f"the loss of the {stage.name} is not finite (NaN): {stage.advice}")
    stage.optimiser.step()
    figures = {name: float(value.float().mean()) for name, value in losses.figures.items()}
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
    """The standing of the stage: its start, or the checkpoint's; None if the stage is over."""
    content = run.checkpoints.load() if run.checkpoints and run.goes_on else None
    if content is None:
        standing = Standing(stage=stage.name)
        _save(stage, standing, run)
        return standing
    standing, epochs, states = content
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
