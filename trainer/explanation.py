"""Training of the explanation module on a frozen target model."""

from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import numpy as np
import torch
from numpy.typing import NDArray
from prodigyopt import Prodigy
from torch import Tensor

from nemt_dicom.errors import TrainingError
from nemt_dicom.network import ExplainedNetwork

from .cache import Examples
from .classifier import Epoch, augment, batches, mixed_precision
from .config import TrainingConfig
from .objectives import Deletion
from .progress import Progress

SMALLEST_AREA, LARGEST_AREA = 1e-3, 0.9
"""Mean mask area on validation positives outside which a run has collapsed."""


def train_explanation_module(
    network: ExplainedNetwork,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    progress: Progress,
    record: Callable[[Epoch], None],
) -> None:
    """Trains the explanation module and leaves it with the weights of the best validation loss.

    Raises `TrainingError` where the loss is not finite or the mask covers nothing or everything.
    """
    objective = Deletion(
        area_weight=config.area_weight,
        fill=config.fill,
        fall_only=config.fall_only,
        response=config.response,
        exponent=config.exponent,
        preservation=config.preservation,
    )
    module = network.explanation_module
    with redirect_stdout(StringIO()):  # it prints its settings
        optimiser = Prodigy(module.parameters(), lr=1.0, weight_decay=0.01, safeguard_warmup=True)
    generator = torch.Generator().manual_seed(config.seed)
    images = torch.from_numpy(train.images)
    step, steps = 0, len(batches(len(images), config.batch, generator))
    best, best_epoch, best_weights = float("inf"), 0, {}
    progress.stage("explanation module", config.mask_epochs * steps)
    for epoch in range(1, config.mask_epochs + 1):
        network.train()  # the target model stays frozen in evaluation mode
        losses = []
        for chosen in batches(len(images), config.batch, generator):
            x = augment(images[chosen].to(config.device), generator, mirror=config.mirror)
            rise = max(1.0, config.area_warmup * config.mask_epochs * steps)
            priced = replace(objective, area_weight=config.area_weight * min(1.0, step / rise))
            with mixed_precision(config):
                terms = priced(network, x)
            step += 1
            loss = terms.loss.mean()
            if not torch.isfinite(loss):
                raise TrainingError("the mask's loss is not finite; try a smaller area weight")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            progress.step(
                f"loss {losses[-1]:.3f}  fall {terms.fall.mean():.2f}  area {terms.area.mean():.2f}"
            )
        network.eval()
        figures = validate(network, objective, validation, config.batch)
        figures["train_loss"] = sum(losses) / len(losses)
        record(Epoch(part="explanation module", number=epoch, figures=figures))
        if figures["loss"] < best:
            best, best_epoch = figures["loss"], epoch
            best_weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
    module.load_state_dict(best_weights)
    network.eval()
    figures = validate(network, objective, validation, config.batch)
    _require_not_collapsed(figures["area_positive"])
    progress.note(
        f"explanation module: validation loss {best:.3f} after epoch {best_epoch}; soft mask "
        f"covers {figures['area_positive']:.1%} of positives, {figures['area_negative']:.1%} of "
        "the others"
    )


@torch.inference_mode()
def validate(
    network: ExplainedNetwork, objective: Deletion, examples: Examples, size: int
) -> dict[str, float]:
    """Loss, fall of the response and mask area, over all images and by label."""
    device = next(network.parameters()).device
    parts = [
        objective(network, images.to(device))
        for images in torch.split(torch.from_numpy(examples.images), size)
    ]
    loss, fall, area = (
        torch.cat([getattr(terms, name) for terms in parts]).cpu().numpy()
        for name in ("loss", "fall", "area")
    )
    positive = examples.labels > 0.5
    return {
        "loss": float(loss.mean()),
        "fall_positive": float(fall[positive].mean()),
        "area_positive": float(area[positive].mean()),
        "area_negative": float(area[~positive].mean()),
    }


@torch.inference_mode()
def soft_masks(
    network: ExplainedNetwork, images: NDArray[np.float32], size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probability (N,) and mask (N, S, S), 1 = evidence, of images (N, 1, S, S)."""
    device = next(network.parameters()).device
    parts: list[tuple[Tensor, Tensor]] = [
        network.explain(part.to(device)) for part in torch.split(torch.from_numpy(images), size)
    ]
    probability = torch.cat([p for p, _ in parts]).cpu().numpy()
    return probability, torch.cat([mask for _, mask in parts])[:, 0].cpu().numpy()


def _require_not_collapsed(area: float) -> None:
    if area < SMALLEST_AREA:
        raise TrainingError(
            f"the mask collapsed to nothing ({area:.2%} of validation positives): try a smaller "
            "--area-weight or more epochs of the classifier"
        )
    if area > LARGEST_AREA:
        raise TrainingError(
            f"the mask grew over everything ({area:.0%} of validation positives): try a larger "
            "--area-weight"
        )
