"""What a run leaves for people: its curves, a panel of masks, its figures and the model card."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from .baselines import METHODS, NEMT
from .checkpoint import Epoch

mpl.use("Agg")
from matplotlib import pyplot as plt

COLUMNS = {
    "rank": "relevance rank ↑",
    "mass": "relevance mass ↑",
    "complexity": "complexity ↓",
    "sparseness": "sparseness ↑",
    "faithfulness": "faithfulness ↑",
    "seconds": "s/image ↓",
}
"""The paper's table, in its order."""


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
    images: NDArray[np.float32],
    titles: Sequence[str],
    masks: NDArray[np.float32],
    mask_threshold: float,
) -> None:
    """A panel of images (N, C, S, S) with their masks (N, S, S) as colour and contour."""
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    chart, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title, mask in zip(axes.flat, images, titles, masks, strict=False):
        axis.imshow(
            image[0] if len(image) == 1 else image.transpose(1, 2, 0), "gray", vmin=0, vmax=1
        )
        axis.imshow(mask, cmap="viridis", vmin=0, vmax=1, alpha=0.35)
        if mask.min() < mask_threshold <= mask.max():
            axis.contour(mask, levels=[mask_threshold], colors="white", linewidths=0.8)
        axis.set_title(title, fontsize=8)
    chart.tight_layout()
    chart.savefig(path, dpi=100)
    plt.close(chart)


def draw_comparison(path: Path, metrics: dict[str, Any]) -> None:
    """`comparison.png`: every method's figures as bars with their 95 % intervals."""
    rows = metrics["localisation"]
    methods = ordered(rows)
    names = ("rank", "mass", "rank_less_others", "mass_less_others", *list(COLUMNS)[2:])
    present = [name for name in names if any(name in row for row in rows.values())]
    lines = -(-len(present) // 4)
    chart, axes = plt.subplots(lines, 4, figsize=(16, (0.35 * len(methods) + 1) * lines))
    for axis in axes.flat[len(present) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, present, strict=False):
        for place, method in enumerate(methods):
            found = rows[method].get(name)
            if found is None:
                continue
            colour = "tab:orange" if method == NEMT else "tab:blue"
            axis.barh(place, found["value"], color=colour, alpha=0.7)
            axis.plot([found["low"], found["high"]], [place, place], color="black", linewidth=1.2)
        axis.set_yticks(range(len(methods)), [_name(metrics, method) for method in methods])
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
        title = name.replace("_less_others", ", own less others")
        axis.set_title(COLUMNS.get(name, title), fontsize=9)
        if name == "seconds":
            axis.set_xscale("log")
        axis.grid(axis="x", alpha=0.3)
    chart.tight_layout()
    chart.savefig(path, dpi=100)
    plt.close(chart)


def ordered(rows: Iterable[str]) -> list[str]:
    """Methods as the registry has them, others after them: a manifest sorts its keys."""
    known = list(METHODS)
    return sorted(rows, key=lambda key: (known.index(key) if key in known else len(known), key))


def _name(metrics: dict[str, Any], method: str) -> str:
    return str(metrics["methods"][method]["name"])


def show(figure: dict[str, float] | None, digits: int = 3) -> str:
    """'0.812 (0.745 to 0.871)': a figure with its 95 % interval; '-' where there is none."""
    if figure is None:
        return "-"
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
        for name, value in metrics.get("auc", {}).items()
    ]
    names = {
        "sensitivity": ("decisions", "sensitivity at the decision threshold"),
        "specificity": ("decisions", "specificity at the decision threshold"),
        "positives": ("mask_area", "soft mask's mean area on positives, before gating"),
        "negatives": ("mask_area", "soft mask's mean area on negatives, before gating"),
    }
    for name, (group, text) in names.items():
        if group not in metrics:
            continue
        value = metrics[group][name]
        rows.append([text, show(value), str(value["images"])])
    texts = {
        "boxed_drawn": "share of boxed images with a drawn segment",
        "negatives_drawn": "share of negatives with a drawn segment",
    }
    for name, text in texts.items():
        if name in metrics:
            rows.append([text, show(metrics[name]), str(metrics[name]["images"])])
    if "classifier_seconds" in metrics:
        value = metrics["classifier_seconds"]
        text = "seconds an image, the classifier's forward pass alone"
        rows.append([text, show(value, 4), str(value["images"])])
    return table(["figure", "value (95 % interval)", "images"], rows)


def localisation_table(metrics: dict[str, Any]) -> str:
    """The paper's table: every method's figures with their intervals.

    Where a figure is defined for fewer images than the row's others, it says for how many.
    """
    rows = []
    for method in ordered(metrics["localisation"]):
        found = metrics["localisation"][method]
        cells = [_cell(found.get(name), found, name) for name in COLUMNS]
        rows.append([_name(metrics, method), *cells])
    return table(["method", *COLUMNS.values()], rows)


def _cell(figure: dict[str, float] | None, row: dict[str, Any], name: str) -> str:
    if figure is None:
        return "not defined"
    text = show(figure, 4 if name == "seconds" else 3)
    fewer = name != "seconds" and figure["images"] < row["mass"]["images"]
    return f"{text}, n = {figure['images']}" if fewer else text


def differences_table(metrics: dict[str, Any]) -> str:
    """Own less others of every method, and the explanation module against each of the others."""
    rows = []
    for method in ordered(metrics["localisation"]):
        found = metrics["localisation"][method]
        less, over = found.get("nemt_less", {}), found.get("nemt_over", {})
        rows.append(
            [
                _name(metrics, method),
                show(found["rank_less_others"]),
                show(less.get("rank_less_others")),
                show(found["mass_less_others"]),
                show(less.get("mass_less_others")),
                show(over.get("rank"), 2),
                show(over.get("mass"), 2),
            ]
        )
    ours = METHODS[NEMT].name
    heads = ["method"]
    for name in ("rank", "mass"):
        heads += [f"{name}, own less others", f"{ours} less this"]
    return table([*heads, f"rank: {ours} over this", f"mass: {ours} over this"], rows)


def methods_list(metrics: dict[str, Any]) -> str:
    """Which library computed each method's maps, and how."""
    return "\n".join(
        f"- {found['name']}: {found['library']}; {found['settings']}"
        for found in (metrics["methods"][method] for method in ordered(metrics["methods"]))
    )


ABLATION = {
    "rank": "rank ↑",
    "mass": "mass ↑",
    "complexity": "complexity ↓",
    "sparseness": "sparseness ↑",
    "faithfulness": "faithfulness ↑",
    "area": "soft mask's area",
    "rank_less_others": "rank, own less others",
    "mass_less_others": "mass, own less others",
}


def ablation_table(rows: dict[str, Any]) -> str:
    """A line a variant of the ablation."""
    return table(
        ["variant", *ABLATION.values()],
        [[name, *(show(row.get(key)) for key in ABLATION)] for name, row in rows.items()],
    )


def draw_ablation(path: Path, rows: dict[str, Any]) -> None:
    """`ablation.png`: each figure of every variant with its 95 % interval."""
    chart, axes = plt.subplots(2, 4, figsize=(17, 9), sharey=True)
    for axis, (key, title) in zip(axes.flat, ABLATION.items(), strict=True):
        for place, row in enumerate(rows.values()):
            if (found := row.get(key)) is not None:
                axis.plot([found["low"], found["high"]], [place, place], color="tab:grey")
                axis.plot(found["value"], place, "o", color="tab:blue")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(rows)), list(rows))
    axes[0, 0].invert_yaxis()
    chart.tight_layout()
    chart.savefig(path, dpi=100)
    plt.close(chart)


def tensorboard_writer(folder: Path) -> SummaryWriter:
    """Writes events for TensorBoard."""
    return SummaryWriter(str(folder))
