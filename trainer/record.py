"""What a run leaves for people after each epoch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nemt_dicom.model.network import ExplainedNetwork

from .data.examples import Examples
from .inference import soft_masks
from .prepare import Prepared
from .progress import Logged
from .report import training_curves as report
from .report.charts import draw_masks
from .training.checkpoint import Epoch, writing
from .training.explanation_stage import ExplanationStage
from .training.thresholds import FIXED, Thresholds

SHOWN = 12
"""Validation images a label in the panel of masks."""


def recorder(
    prepared: Prepared, folder: Path, log: Logged, *, tensorboard: bool
) -> Callable[[list[Epoch]], None]:
    """What is written after each epoch: figures, curves, a panel of masks, TensorBoard's events."""
    writer = report.tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def record(epochs: list[Epoch]) -> None:
        newest = epochs[-1]
        figures = ", ".join(f"{name} {value:.4g}" for name, value in newest.figures.items())
        log.line(f"{newest.part}, epoch {newest.number}: {figures}")
        with writing(folder):
            report.write_metrics(folder / "metrics.csv", epochs)
            report.draw_curves(folder / "curves.png", epochs)
            if newest.part == ExplanationStage.name:
                path = folder / f"masks-{newest.number:03d}.png"
                draw_panel(path, prepared.network, prepared.validation, FIXED)
        if writer is not None:
            for name, value in newest.figures.items():
                writer.add_scalar(f"{newest.part}/{name}", value, newest.number)
            writer.flush()

    return record


def draw_panel(
    path: Path, network: ExplainedNetwork, validation: Examples, thresholds: Thresholds
) -> None:
    """Draws the masks of up to SHOWN validation images of each label to a PNG file."""
    rows = np.concatenate([np.flatnonzero(validation.labels == label)[:SHOWN] for label in (1, 0)])
    images = validation.take(rows)
    answer, masks = soft_masks(network, images)
    titles = [
        f"{'positive' if validation.labels[row] > 0.5 else 'negative'}"
        + ("" if answer.ndim > 1 else f", p = {p:.2f}")
        for row, p in zip(rows, answer[:, 0] if answer.ndim > 1 else answer, strict=True)
    ]
    draw_masks(path, images, masks, titles, thresholds.mask_threshold)
