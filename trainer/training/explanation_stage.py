"""The stage that trains the explanation module on a frozen target model."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..inference import BATCH, batches, device_of, explained_probability, probabilities, soft_masks
from ..metrics import faithfulness
from .agreement import SQUARE_NUMBERS
from .augment import add_noise, augment, smoothing_kernels
from .checkpoint import State, Weights
from .draws import Draws, balanced, shuffled
from .loop import prodigy
from .objectives import (
    Deletion,
    Literal,
    Objective,
    Randomness,
    Representation,
    Terms,
    expected,
    respond,
)
from .recipe import ExplanationModule, Recipe, Response, TrainingFill
from .stage import Batch, Losses

JUDGED = 64
"""Validation positives, at most, whose masks' faithfulness is measured after an epoch."""

PRICE = "explanation_module.area_weight"
"""Name of λ₁ in a recipe, for messages."""

SMALLEST_AREA, LARGEST_AREA = 1e-3, 0.9
"""Mean mask area on validation positives outside which a run has collapsed."""


def objective_of(settings: ExplanationModule, scale: float) -> Objective:
    """The objective that a recipe names. scale: what divides the response, see `Deletion`."""
    price, fill, response = settings.area_weight, settings.fill, settings.response
    if settings.objective == "nem-u":
        return Representation(area_weight=price, binary_weight=settings.binary_weight, fill=fill)
    if settings.objective == "literal":
        return Literal(area_weight=price, fill=fill, response=response)
    return Deletion(
        area_weight=price,
        fill=fill,
        response=response,
        exponent=settings.exponent,
        fall_only=settings.fall_only,
        agreement=settings.agreement,
        scale=scale,
    )


@torch.inference_mode()
def mean_response(network: ExplainedNetwork, train: Examples, response: Response) -> float:
    """Mean size of the response of up to 256 training positives, spread over all of them.

    Raises `TrainingError` if it is about 0: the target model does not know the target.
    """
    responses = [
        respond(network.log_odds(network.logits(images)), response)
        for images in batches(network, train.take(_positives(train, 256)))
    ]
    mean = float(torch.cat(responses).abs().mean())
    if not mean > 1e-3:
        raise TrainingError(
            f"the target model's response on training positives is {mean:.4f}: it does not know "
            "the target, so that there is nothing to explain"
        )
    return mean


def _positives(examples: Examples, most: int) -> NDArray[np.intp]:
    """Rows of up to `most` examples with the target, spread over all of them."""
    rows = np.flatnonzero(examples.labels > 0.5)
    chosen: NDArray[np.intp] = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
    return chosen


class ExplanationStage:
    """Trains the explanation module; see `stage.Stage`.

    collapse_ends: whether a mask of nothing or of everything ends the run.
    """

    name = "explanation module"
    advice = (
        "try a smaller explanation_module.area_weight, or explanation_module.response=probability"
    )

    def __init__(
        self,
        network: ExplainedNetwork,
        train: Examples,
        validation: Examples,
        recipe: Recipe,
        *,
        collapse_ends: bool = True,
    ) -> None:
        settings = recipe.explanation_module
        self.epochs, self.patience = settings.epochs, settings.patience
        self._network, self._recipe, self._settings = network, recipe, settings
        self._train, self._validation = train, validation
        scaled = settings.scaled and settings.objective in {"nemt", "nemt-predicted"}
        scale = mean_response(network, train, settings.response) if scaled else 1.0
        self._objective = objective_of(settings, scale)
        self._collapse_ends = collapse_ends
        self._was_collapsed = False
        self.module: nn.Module = _MaskLoss(network, self._objective, settings)
        self.optimiser: torch.optim.Optimizer = prodigy(
            network.explanation_module.parameters(), 1.0, 0.01
        )

    def order(self, epoch: int) -> NDArray[np.intp]:
        """Every example once; if balanced, examples with p above 1/2 and the other ones in turn."""
        key = (self._recipe.run.seed, self.name, epoch)
        if self._settings.balanced:
            return balanced(key, self._likely)
        return shuffled(key, len(self._train))

    @cached_property
    def _likely(self) -> NDArray[np.bool_]:
        return probabilities(self._network, self._train) > 0.5

    def augmented(self, images: Tensor, draws: Draws) -> Tensor:
        """Turned, moved and scaled, and noisy."""
        settings = self._recipe.augmentation
        return add_noise(augment(images, draws, mirror=settings.mirror), draws, settings.noise)

    def begin_epoch(self) -> None:
        """Training mode; the target model stays in evaluation mode."""
        self._network.train()

    def before_step(self, done: float) -> None:
        """Nothing: Prodigy finds its own step size."""

    def after_step(self) -> None:
        """Nothing."""

    def validate(self, done: float) -> tuple[float, dict[str, float]]:
        """Mean loss at the full price, falls and areas; faithfulness if epochs are kept by it.

        The score is infinite while the price still rises, and if the mask has collapsed.
        """
        self._network.eval()
        figures = validate(self._network, self._objective, self._validation, self._settings.fill)
        if done <= self._settings.area_warmup and done < 1:
            return float("inf"), figures
        if self._settings.keep == "faithful":
            figures["faithfulness"] = mean_faithfulness(self._network, self._validation)
        if self._collapse_ends and self._collapsed(figures["area_positive"], last=done >= 1):
            return float("inf"), figures
        return -figures["faithfulness"] if "faithfulness" in figures else figures["loss"], figures

    def tolerance(self, best: float) -> float:
        """Infinite if the last epoch is kept, otherwise 0."""
        return float("inf") if self._settings.keep == "last" else 0.0

    def _collapsed(self, area: float, *, last: bool) -> bool:
        """Whether the mask has collapsed. A second collapse in a row ends the run.

        A single collapse may pass.
        """
        before, self._was_collapsed = self._was_collapsed, False
        try:
            require_not_collapsed(area)
        except TrainingError:
            if before or last or not np.isfinite(area):
                raise
            self._was_collapsed = True
        return self._was_collapsed

    def weights(self) -> Weights:
        """Of the explanation module."""
        weights: Weights = self._network.explanation_module.state_dict()
        return weights

    def keep(self, weights: Weights | None) -> None:
        """Ends in evaluation mode."""
        if weights is not None:
            self._network.explanation_module.load_state_dict(weights)
        self._network.eval()

    def state(self) -> State:
        """Whether the last validation found a collapsed mask."""
        return {"was_collapsed": self._was_collapsed}

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        self._was_collapsed = state["was_collapsed"]


class _MaskLoss(nn.Module):
    def __init__(
        self, network: ExplainedNetwork, objective: Objective, settings: ExplanationModule
    ) -> None:
        super().__init__()
        self.network = network
        self._objective, self._settings = objective, settings

    def forward(self, batch: Batch) -> Losses:
        x, settings = batch.images, self._settings
        random = Randomness(
            kernels=smoothing_kernels(batch.draws, settings.neighbourhood, x.device),
            fills=batch.draws.uniform("fill", 1)[:, 0].to(x.device),
            squares=batch.draws.uniform("squares", SQUARE_NUMBERS).to(x.device),
        )
        warmup = settings.area_warmup
        price = min(1.0, batch.done / warmup) if warmup else 1.0
        terms = self._objective(self.network, x, random, price)
        return Losses(loss=terms.loss, figures={"fall": terms.fall, "area": terms.area})


@torch.inference_mode()
def validate(
    network: ExplainedNetwork,
    objective: Objective,
    examples: Examples,
    fill: TrainingFill,
) -> dict[str, float]:
    """Loss, fall and mask area, over all examples and by label, the mean over all fills."""
    device = device_of(network)
    parts: list[list[Terms]] = []
    for i in range(0, len(examples), BATCH):
        rows = np.arange(i, min(i + BATCH, len(examples)))
        images = torch.from_numpy(examples.take(rows)).to(device)
        parts.append([objective(network, images, r, 1.0) for r in expected(fill, images)])
    loss, fall, area = (
        torch.cat([torch.stack([getattr(t, name) for t in part]).float().mean(0) for part in parts])
        .cpu()
        .numpy()
        for name in ("loss", "fall", "area")
    )
    positive = examples.labels > 0.5
    return {
        "loss": float(loss.mean()),
        "fall_positive": float(fall[positive].mean()),
        "area_positive": float(area[positive].mean()),
        "area_negative": float(area[~positive].mean()),
    }


def mean_faithfulness(network: ExplainedNetwork, examples: Examples) -> float:
    """Mean faithfulness of the masks of up to JUDGED positives, as they are served.

    If it is not defined, because the mask is constant, it counts as 0. See `metrics.faithfulness`.
    """
    images = examples.take(_positives(examples, JUDGED))
    _, masks = soft_masks(network, images)
    device = str(device_of(network))
    probability, index = explained_probability(network, images)
    assert probability is not None  # the configuration asks it of no representation
    values = faithfulness(list(masks), images, probability, index=index, device=device)
    return float(np.nan_to_num(values, nan=0.0).mean())


def require_not_collapsed(area: float) -> None:
    """Raises `TrainingError` if a mask's mean area on positives is nothing or everything."""
    if not np.isfinite(area):
        raise TrainingError(f"the mask is not finite (NaN): try a smaller {PRICE}")
    if area < SMALLEST_AREA:
        raise TrainingError(
            f"the mask collapsed to nothing ({area:.2%} of validation positives): try a smaller "
            f"{PRICE} or more epochs of the target model"
        )
    if area > LARGEST_AREA:
        raise TrainingError(
            f"the mask grew over everything ({area:.0%} of validation positives): try a larger "
            f"{PRICE}"
        )
