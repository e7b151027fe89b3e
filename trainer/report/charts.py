"""Pictures of an evaluation: bars with intervals, panels of maps, curves; and of any masks."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from nemt_dicom.files import write_whole
from nemt_dicom.model.evaluation import Evaluation, Figure, MethodResult, Randomisation

from ..arrays import Images, Maps, Regions
from ..evaluation.settings import NEMT
from ..metrics import min_max
from .tables import FURTHER, PAPER, SECONDS, ordered, score

mpl.use("Agg")
from matplotlib import figure as mpl_figure
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

TRUTH_COLOUR = "#00d0ff"


def draw_bars(path: Path, evaluation: Evaluation) -> None:
    """Every method's figures as bars with their 95 % intervals."""
    methods = [evaluation.methods[key] for key in ordered(evaluation.methods)]
    names = ("relevance_rank", "relevance_mass", "relevance_rank_less_others",
             "relevance_mass_less_others", *list(PAPER)[2:], "seconds", *FURTHER)  # fmt: skip
    present = [name for name in names if any(_figure(m, name) for m in methods)]
    columns = 3
    lines = -(-len(present) // columns)
    height = (0.28 * len(methods) + 0.9) * lines
    chart, axes = plt.subplots(lines, columns, figsize=(15, height), sharey=True, squeeze=False)
    for axis in axes.flat[len(present) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, present, strict=False):
        for place, method in enumerate(methods):
            bar = _figure(method, name)
            if bar is None:
                continue
            colour = "tab:orange" if method is evaluation.module else "tab:blue"
            axis.barh(place, bar.mean, color=colour, alpha=0.7)
            axis.plot([bar.lo, bar.hi], [place, place], color="black", linewidth=1.2)
        axis.set_yticks(range(len(methods)), [method.name for method in methods])
        axis.tick_params(labelsize=8)
        title = name.replace("_less_others", ", own less others").replace("_", " ")
        axis.set_title({**PAPER, **FURTHER, "seconds": SECONDS}.get(name, title), fontsize=10)
        if name == "seconds":
            axis.set_xscale("log")
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()
    save(chart, path, dpi=90)


def _figure(method: MethodResult, name: str) -> Figure | None:
    if name == "seconds":
        return None if method.seconds is None else method.seconds.single
    return score(method.scores, name)


def draw_panels(
    path: Path,
    images: Images,
    truth: Regions | None,
    maps: Sequence[Mapping[str, NDArray[np.float32]]],
    names: Mapping[str, str],
    titles: Sequence[str],
) -> None:
    """A row an image, a column a method, like the paper's figures 3 and 4: source, truth, maps.

    images: (N, C, S, S). maps: each image's maps (S, S) by method; a method without a map of an
    image leaves its place blank. names: by method.
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
            values = maps[line][method]
            axis.imshow(values if method == NEMT else min_max(values), "inferno", alpha=0.6,
                        vmin=0, vmax=1)  # fmt: skip
            _outline(axis, None if truth is None else truth[line])
    axes[0, 1].set_title("ground truth", fontsize=8)
    for axis, method in zip(axes[0, 2:], methods, strict=True):
        axis.set_title(names[method], fontsize=8, wrap=True)
    save(chart, path, dpi=100)


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
    save(chart, path, dpi=90)


def draw_curves(path: Path, evaluation: Evaluation) -> None:
    """Mean deletion and insertion curves of every method, for each fill."""
    kinds = ("deletion_black", "deletion_blur", "insertion_black", "insertion_blur")
    chart, axes = plt.subplots(1, 4, figsize=(17, 4.6), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        for place, key in enumerate(ordered(evaluation.methods)):
            method = evaluation.methods[key]
            if kind not in method.curves:
                continue
            curve, ours = method.curves[kind], key == NEMT
            axis.plot(
                np.linspace(0, 100, len(curve)),
                curve,
                label=method.name,
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
    save(chart, path, dpi=90, room=(0, 0.13, 1, 1))


def draw_randomisation(path: Path, randomisation: Randomisation) -> None:
    """Rank correlation with the original maps, as more of the target model is randomised."""
    chart, axes = plt.subplots(1, 2, figsize=(13, 4.4), sharey=True)
    for axis, kind in zip(axes, ("cascading", "independent"), strict=True):
        for key in ordered(randomisation.methods):
            method = randomisation.methods[key]
            series = method.cascading if kind == "cascading" else method.independent
            values = [np.nan if value is None else value for value in series]
            axis.plot(range(1, len(values) + 1), values, marker="o", markersize=4,
                      label=method.name, linewidth=2.6 if key == NEMT else 1.2)  # fmt: skip
        axis.set_title(kind)
        axis.set_xlabel("group of layers, from the output to the input")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("rank correlation")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(chart, path, dpi=90)


def _show(axis: Axes, image: NDArray[np.float32]) -> None:
    axis.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), "gray", vmin=0, vmax=1)


def _outline(axis: Axes, region: NDArray[np.bool_] | None) -> None:
    if region is not None and region.any() and not region.all():
        axis.contour(region.astype(float), levels=[0.5], colors=TRUTH_COLOUR, linewidths=1.0)


def save(
    chart: mpl_figure.Figure,
    path: Path,
    *,
    dpi: int,
    room: tuple[float, float, float, float] = (0, 0, 1, 1),
) -> None:
    """Writes a chart as PNG, whole, and closes it. room: the part for the axes, of the whole."""
    chart.tight_layout(rect=room)
    picture = io.BytesIO()
    chart.savefig(picture, dpi=dpi, format="png")
    plt.close(chart)
    write_whole(path, picture.getvalue())
