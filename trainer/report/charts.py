"""Pictures of an evaluation: bars with intervals, panels of maps, curves; and of any masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from ..arrays import Images, Maps, Regions
from ..evaluation.methods import NEMT
from ..metrics import min_max
from .tables import FURTHER, PAPER, ordered

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Summary = dict[str, Any]
TRUTH_COLOUR = "#00d0ff"


def draw_bars(path: Path, summary: Summary) -> None:
    """Every method's figures as bars with their 95 % intervals."""
    rows = summary["methods"]
    methods = ordered(rows)
    names = ("relevance_rank", "relevance_mass", "relevance_rank_less_others",
             "relevance_mass_less_others", *list(PAPER)[2:], *FURTHER)  # fmt: skip
    present = [name for name in names if any(name in row for row in rows.values())]
    columns = 3
    lines = -(-len(present) // columns)
    height = (0.28 * len(methods) + 0.9) * lines
    chart, axes = plt.subplots(lines, columns, figsize=(15, height), sharey=True, squeeze=False)
    for axis in axes.flat[len(present) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, present, strict=False):
        for place, method in enumerate(methods):
            found = rows[method].get(name)
            if found is None:
                continue
            colour = "tab:orange" if method == NEMT else "tab:blue"
            axis.barh(place, found["mean"], color=colour, alpha=0.7)
            axis.plot([found["lo"], found["hi"]], [place, place], color="black", linewidth=1.2)
        axis.set_yticks(range(len(methods)), [rows[method]["name"] for method in methods])
        axis.tick_params(labelsize=8)
        title = name.replace("_less_others", ", own less others").replace("_", " ")
        axis.set_title({**PAPER, **FURTHER}.get(name, title), fontsize=10)
        if name == "seconds":
            axis.set_xscale("log")
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()
    _save(chart, path, dpi=90)


def draw_panels(
    path: Path,
    images: Images,
    truth: Regions | None,
    maps: Sequence[Mapping[str, NDArray[np.float32]]],
    names: Mapping[str, str],
    titles: Sequence[str],
) -> None:
    """A row an image, a column a method, as the paper's figures 3 and 4: source, truth, maps.

    maps: each image's maps (S, S) by method; a method without one of an image leaves it blank.
    """
    methods = ordered(names)
    columns = len(methods) + 2
    chart, axes = plt.subplots(
        len(images), columns, figsize=(1.7 * columns, 1.85 * len(images)), squeeze=False
    )
    for line, (axis_row, image, title) in enumerate(zip(axes, images, titles, strict=True)):
        for axis in axis_row:
            axis.axis("off")
        _show(axis_row[0], image)
        axis_row[0].set_title(title, fontsize=8)
        _show(axis_row[1], image)
        _outline(axis_row[1], None if truth is None else truth[line])
        for axis, method in zip(axis_row[2:], methods, strict=True):
            if method not in maps[line]:
                continue
            _show(axis, image)
            found = maps[line][method]
            axis.imshow(found if method == NEMT else min_max(found), "inferno", alpha=0.6,
                        vmin=0, vmax=1)  # fmt: skip
            _outline(axis, None if truth is None else truth[line])
    axes[0, 1].set_title("ground truth", fontsize=8)
    for axis, method in zip(axes[0, 2:], methods, strict=True):
        axis.set_title(names[method], fontsize=8, wrap=True)
    _save(chart, path, dpi=100)


def draw_masks(
    path: Path,
    images: Images,
    masks: Maps,
    titles: Sequence[str],
    threshold: float,
    truth: Regions | None = None,
) -> None:
    """Masks (N, S, S) over their images, with the segment's contour and the ground truth's."""
    columns = 5
    lines = -(-len(images) // columns)
    chart, axes = plt.subplots(lines, columns, figsize=(15, 3.4 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image, title) in enumerate(zip(axes.flat, images, titles, strict=False)):
        _show(axis, image)
        axis.imshow(masks[i], "inferno", alpha=0.45, vmin=0, vmax=1)
        if masks[i].min() < threshold <= masks[i].max():
            axis.contour(masks[i], levels=[threshold], colors="white", linewidths=1.2)
        _outline(axis, None if truth is None else truth[i])
        axis.set_title(title, fontsize=9)
    _save(chart, path, dpi=90)


def draw_curves(path: Path, summary: Summary) -> None:
    """Mean deletion and insertion curves of every method, for each fill."""
    rows = summary["methods"]
    kinds = ("deletion_black", "deletion_blur", "insertion_black", "insertion_blur")
    chart, axes = plt.subplots(1, 4, figsize=(17, 4.6), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        for place, method in enumerate(ordered(rows)):
            if kind not in rows[method].get("curves", {}):
                continue
            curve = rows[method]["curves"][kind]
            ours = method == NEMT
            axis.plot(
                np.linspace(0, 100, len(curve)),
                curve,
                label=rows[method]["name"],
                linewidth=2.6 if ours else 1.2,
                color="black" if ours else plt.cm.tab20(place % 20),
            )
        better = "lower is better" if kind.startswith("deletion") else "higher is better"
        axis.set_title(f"{kind.replace('_', ', ')}: {better}", fontsize=10)
        axis.set_xlabel("% of the pixels, highest first")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean probability")
    handles, labels = axes[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="lower center", ncol=7, fontsize=8, frameon=False)
    chart.tight_layout(rect=(0, 0.13, 1, 1))
    chart.savefig(path, dpi=90)
    plt.close(chart)


def draw_randomisation(path: Path, summary: Summary) -> None:
    """Rank correlation with the original maps, as more of the target model is randomised."""
    found = summary["randomisation"]
    chart, axes = plt.subplots(1, 2, figsize=(13, 4.4), sharey=True)
    for axis, kind in zip(axes, ("cascading", "independent"), strict=True):
        for method in ordered(key for key in found if key != "layers"):
            values = [np.nan if v is None else v for v in found[method][kind]]
            axis.plot(range(1, len(values) + 1), values, marker="o", markersize=4,
                      label=found[method]["name"],
                      linewidth=2.6 if method == NEMT else 1.2)  # fmt: skip
        axis.set_title(kind)
        axis.set_xlabel("group of layers, from the output to the input")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("rank correlation")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _save(chart, path, dpi=90)


def _show(axis: Axes, image: NDArray[np.float32]) -> None:
    axis.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), "gray", vmin=0, vmax=1)


def _outline(axis: Axes, region: NDArray[np.bool_] | None) -> None:
    if region is not None and region.any() and not region.all():
        axis.contour(region.astype(float), levels=[0.5], colors=TRUTH_COLOUR, linewidths=1.0)


def _save(chart: Any, path: Path, dpi: int) -> None:
    chart.tight_layout()
    chart.savefig(path, dpi=dpi)
    plt.close(chart)
