"""What a run leaves for people: its curves, a panel of masks, its figures and the model card."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from .cache import Examples
from .classifier import Epoch

mpl.use("Agg")
from matplotlib import pyplot as plt


def write_metrics(path: Path, epochs: Sequence[Epoch]) -> None:
    """`metrics.csv`: one line a figure, so that every part can have its own."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "epoch", "figure", "value"])
        for epoch in epochs:
            for name, value in epoch.figures.items():
                writer.writerow([epoch.part, epoch.number, name, f"{value:.6g}"])


def draw_curves(path: Path, epochs: Sequence[Epoch]) -> None:
    """`curves.png`: every figure of every part over its epochs."""
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for epoch in epochs:
        for name, value in epoch.figures.items():
            lines.setdefault((epoch.part, name), []).append((epoch.number, value))
    columns = 4
    rows = -(-len(lines) // columns)
    chart, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, ((part, name), points) in zip(axes.flat, lines.items(), strict=False):
        axis.set_visible(True)
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3)
        axis.set_title(f"{part}: {name.replace('_', ' ')}", fontsize=8)
        axis.grid(alpha=0.3)
    chart.tight_layout()
    chart.savefig(path, dpi=100)
    plt.close(chart)


def draw_masks(
    path: Path,
    examples: Examples,
    probability: NDArray[np.float32],
    masks: NDArray[np.float32],
    mask_threshold: float,
    *,
    each: int = 12,
) -> None:
    """`masks.png`: validation images with their masks, positives above, negatives below."""
    chosen = [i for label in (1, 0) for i in np.flatnonzero(examples.labels == label)[:each]]
    columns = min(6, len(chosen))
    rows = -(-len(chosen) // columns)
    chart, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, i in zip(axes.flat, chosen, strict=False):
        axis.imshow(examples.images[i, 0], cmap="gray", vmin=0, vmax=1)
        axis.imshow(masks[i], cmap="viridis", vmin=0, vmax=1, alpha=0.35)
        if masks[i].min() < mask_threshold <= masks[i].max():
            axis.contour(masks[i], levels=[mask_threshold], colors="white", linewidths=0.8)
        label = "positive" if examples.labels[i] > 0.5 else "negative"
        axis.set_title(f"{label}, p = {probability[i]:.2f}", fontsize=8)
    chart.tight_layout()
    chart.savefig(path, dpi=100)
    plt.close(chart)


def show(figure: dict[str, float], digits: int = 3) -> str:
    """'0.812 (0.745 to 0.871)': a figure with its 95 % interval."""
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures_table(metrics: dict[str, Any]) -> str:
    """The test figures that are not about where a map lies."""
    rows = [
        [f"AUC, {name}", show(value), str(value["images"])]
        for name, value in metrics["auc"].items()
    ]
    names = {
        "sensitivity": ("decisions", "sensitivity at the decision threshold"),
        "specificity": ("decisions", "specificity at the decision threshold"),
        "positives": ("mask_area", "soft mask's mean area on positives, before gating"),
        "negatives": ("mask_area", "soft mask's mean area on negatives, before gating"),
    }
    for name, (group, text) in names.items():
        value = metrics[group][name]
        rows.append([text, show(value), str(value["images"])])
    texts = {
        "boxed_drawn": "share of boxed images with a drawn segment",
        "negatives_drawn": "share of negatives with a drawn segment",
    }
    for name, text in texts.items():
        if name in metrics:
            rows.append([text, show(metrics[name]), str(metrics[name]["images"])])
    return table(["figure", "value (95 % interval)", "images"], rows)


def localisation_table(metrics: dict[str, Any]) -> str:
    """Relevance mass and rank of every method."""
    names = ("mass", "mass_less_others", "rank", "rank_less_others")
    rows = [
        [method, *(show(row[name]) for name in names)]
        for method, row in metrics["localisation"].items()
    ]
    heads = ["method", "mass", "mass, own less others", "rank", "rank, own less others"]
    return table(heads, rows)
