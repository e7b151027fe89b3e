"""The loop: batches, the images read ahead, which epoch is kept, and what ends a stage."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nemt_dicom.errors import TrainingError
from trainer.training import loop
from trainer.training.distributed import Team
from trainer.training.draws import Draws, shuffled
from trainer.training.loop import Run, batches, read_ahead
from trainer.training.recipe_file import preset
from trainer.training.stage import Batch, Losses

ALONE = Team(rank=0, size=1, device=torch.device("cpu"))


def bare(batch: int = 4) -> Run:
    recipe = preset(**{"run.batch": batch, "run.bfloat16": False})
    return Run.bare(recipe, torch.nn.Linear(1, 1), ALONE)  # type: ignore[arg-type]


def test_every_example_once_an_epoch_but_for_a_part_of_a_batch() -> None:
    planned = batches(np.arange(43), 8)
    assert [len(rows) for rows in planned] == [8] * 5
    assert np.array_equal(np.concatenate(planned), np.arange(40))
    assert [len(rows) for rows in batches(np.arange(5), 8)] == [5]


class Numbered:
    """Examples whose images hold their own number."""

    def __len__(self) -> int:
        return 4

    def take(self, rows) -> np.ndarray:
        return np.asarray(rows, np.float32)[:, None, None, None]


def test_images_come_in_the_order_of_their_batches_and_are_shared_out() -> None:
    planned = batches(shuffled((1,), 30), 6)
    device = torch.device("cpu")
    taken: list[list[float]] = [[], []]
    for rank in (0, 1):
        team = Team(rank=rank, size=2, device=device)
        for rows, images in read_ahead(Numbered(), planned, team):  # type: ignore[arg-type]
            assert images.flatten().tolist() == team.share(rows).tolist()
            taken[rank] += images.flatten().tolist()
    assert sorted(taken[0] + taken[1]) == list(range(30))


def test_an_image_taken_twice_is_drawn_for_anew() -> None:
    weight, drawn = torch.nn.Parameter(torch.zeros(1)), []

    def module(batch: Batch) -> Losses:
        drawn.append(batch.draws.uniform("augment", 3))
        return Losses(loss=weight * batch.images.mean(dim=(1, 2, 3)), figures={})

    stage = SimpleNamespace(
        optimiser=torch.optim.SGD([weight], lr=0.1), augmented=lambda images, _: images
    )
    run = bare()
    for step in range(2):
        key = (1, "classifier", 1, step)
        loop.take_step(stage, module, np.array([7, 7, 7, 7]), torch.ones(4, 1, 8, 8), key, 0.0, run)
    numbers = torch.cat(drawn)  # of two steps with the same image at four places
    assert numbers.shape == (8, 3)
    assert len(numbers.flatten().unique()) == 24
    alone = Draws((1, "classifier", 1, 0), np.arange(4)).uniform("augment", 3)
    assert torch.equal(numbers[:4], alone)


class Scripted:
    """A stage whose validation gives these scores, and whose one weight counts the epochs."""

    name, advice, patience = "classifier", "", 3

    def __init__(self, scores: tuple[float, ...], tolerance: float) -> None:
        self.epochs, self._scores, self._tolerance = len(scores), list(scores), tolerance
        self._epoch = torch.zeros(1, requires_grad=True)
        self.kept = 0
        self.optimiser = torch.optim.SGD([self._epoch], lr=0.0)
        self.module = torch.nn.Module()
        self.module.forward = lambda batch: Losses(  # type: ignore[method-assign]
            loss=self._epoch.expand(len(batch.rows)), figures={}
        )

    def order(self, epoch: int) -> np.ndarray:
        return np.arange(4)

    def augmented(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        return images

    def begin_epoch(self) -> None:
        with torch.no_grad():
            self._epoch += 1

    def before_step(self, done: float) -> None: ...
    def after_step(self) -> None: ...

    def validate(self, done: float) -> tuple[float, dict[str, float]]:
        return self._scores[int(self._epoch) - 1], {}

    def tolerance(self, best: float) -> float:
        return self._tolerance

    def weights(self) -> dict[str, torch.Tensor]:
        return {"epoch": self._epoch}

    def keep(self, weights: dict[str, torch.Tensor] | None) -> None:
        self.kept = int(weights["epoch"]) if weights else 0

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def test_no_epoch_to_keep_ends_the_run() -> None:
    with pytest.raises(TrainingError, match="no epoch of the classifier"):
        loop.fit(Scripted((float("nan"), float("inf")), 0.0), Numbered(), bare())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "tolerance", "kept", "epochs"),
    [
        ((3.0, 1.0, 1.4, 2.0), 0.0, 2, 4),
        ((3.0, 1.0, 1.4, 2.0), 0.5, 3, 4),
        ((3.0, 1.0, 1.4, 2.0), float("inf"), 4, 4),
        ((3.0, 1.0, 1.0, 2.0), 0.0, 3, 4),
        ((float("inf"), 1.0, 2.0, 2.0, 2.0, 2.0), 0.5, 2, 5),
        ((float("inf"), 1.0, float("nan"), 2.0), float("inf"), 4, 4),
    ],
    ids=["best", "within the tolerance", "last", "equal", "out of patience", "not a number"],
)
def test_the_latest_epoch_that_is_as_good_as_the_best_is_kept(
    scores: tuple[float, ...], tolerance: float, kept: int, epochs: int
) -> None:
    stage = Scripted(scores, tolerance)
    run = bare()
    loop.fit(stage, Numbered(), run)  # type: ignore[arg-type]
    assert (stage.kept, len(run.epochs)) == (kept, epochs)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice() -> None:
    stage = Scripted((1.0,), 0.0)
    stage.advice = "try a smaller step"
    stage.module.forward = lambda batch: Losses(  # type: ignore[method-assign]
        loss=stage._epoch.expand(len(batch.rows)) * float("nan"), figures={}
    )
    with pytest.raises(TrainingError, match=r"classifier is not finite \(NaN\): try a smaller"):
        loop.fit(stage, Numbered(), bare())  # type: ignore[arg-type]
