"""What a training run writes for people: its curves, and the table of the ablation."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import matplotlib as mpl
from torch.utils.tensorboard import SummaryWriter

from nemt_dicom.files import write_whole
from nemt_dicom.model.evaluation import Scores

from ..markdown import show, table
from ..training.checkpoint import Epoch
from .charts import save
from .tables import score

mpl.use("Agg")
from matplotlib import pyplot as plt


def write_metrics(path: Path, epochs: Sequence[Epoch]) -> None:
    """`metrics.csv`: a line a figure, so that every part can have its own.

    The file is whole at any time, for people who read it while the run goes on.
    """
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["part", "epoch", "figure", "value"])
    for epoch in epochs:
        for name, value in epoch.figures.items():
            writer.writerow([epoch.part, epoch.number, name, f"{value:.6g}"])
    write_whole(path, text.getvalue())


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
    save(chart, path, dpi=100)


ABLATION = {
    "relevance_rank": "rank ↑",
    "relevance_mass": "mass ↑",
    "complexity": "complexity ↓",
    "sparseness": "sparseness ↑",
    "faithfulness": "faithfulness ↑",
    "area": "soft mask's area",
    "relevance_rank_less_others": "rank, own less others",
    "relevance_mass_less_others": "mass, own less others",
}


def ablation_table(rows: Mapping[str, Scores]) -> str:
    """A line a variant of the ablation."""
    return table(
        ["variant", *ABLATION.values()],
        [[name, *(show(score(row, key)) for key in ABLATION)] for name, row in rows.items()],
    )


def draw_ablation(path: Path, rows: Mapping[str, Scores]) -> None:
    """`ablation.png`: each figure of every variant with its 95 % interval."""
    chart, axes = plt.subplots(2, 4, figsize=(17, 9), sharey=True)
    for axis, (key, title) in zip(axes.flat, ABLATION.items(), strict=True):
        for place, row in enumerate(rows.values()):
            if (figure := score(row, key)) is not None:
                axis.plot([figure.lo, figure.hi], [place, place], color="tab:grey")
                axis.plot(figure.mean, place, "o", color="tab:blue")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(rows)), list(rows))
    axes[0, 0].invert_yaxis()
    save(chart, path, dpi=100)


def tensorboard_writer(folder: Path) -> SummaryWriter:
    """Writes events for TensorBoard."""
    return SummaryWriter(str(folder))
