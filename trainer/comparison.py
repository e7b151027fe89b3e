"""Attribution methods compared with the ground truth of where to look, and with each other.

The ground truth is a region an image: boxes, lesion masks, whatever a set has.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .baselines import NEMT, Images, Maps
from .metrics import (
    Probability,
    Scores,
    bootstrap,
    complexity,
    faithfulness,
    relevance_mass,
    relevance_rank,
    sparseness,
)

Regions = NDArray[np.bool_]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, its 95 % bootstrap interval over patients, and the images it is of."""

    value: float
    low: float
    high: float
    images: int


def figure(
    statistic: Callable[[NDArray[np.intp]], float],
    patients: Sequence[str],
    *,
    images: int | None = None,
) -> dict[str, float]:
    """A statistic of rows with its interval, rounded as it is kept in the manifest.

    images: of how many rows it is, where not of all.
    """
    low, high = bootstrap(statistic, patients)
    value = statistic(np.arange(len(patients)))
    count = len(patients) if images is None else images
    found = Figure(value=value, low=low, high=high, images=count)
    return {k: v if k == "images" else round(v, 4) for k, v in asdict(found).items()}


def average(values: NDArray[Any]) -> Callable[[NDArray[np.intp]], float]:
    """The statistic of rows that is the mean of their values, for `figure`."""
    return lambda rows: float(values[rows].mean())


def mean(values: NDArray[Any], patients: Sequence[str]) -> dict[str, float] | None:
    """The mean of the values that are defined (not NaN), or None where none is."""
    defined = np.isfinite(values)
    if not defined.any():
        return None

    def statistic(rows: NDArray[np.intp]) -> float:
        chosen = values[rows][defined[rows]]
        return float(chosen.mean()) if len(chosen) else float("nan")

    return figure(statistic, patients, images=int(defined.sum()))


def compare(
    maps: Mapping[str, Maps],
    truth: Regions,
    images: Images,
    probability: Probability | None,
    patients: Sequence[str],
    *,
    index: NDArray[np.intp] | None = None,
    device: str = "cpu",
    done: Callable[[], None] = lambda: None,
) -> dict[str, Row]:
    """A row of figures for each method's maps (N, S, S), JSON-able.

    truth: (N, S, S), where the evidence is. images: (N, C, S, S) in [0, 1]. probability: of the
    target, on `device`; None for maps of a representation, where faithfulness is not defined.
    index: see `faithfulness`. done: called after each method.

    A row has `mass`, `rank`, `complexity`, `sparseness`, `faithfulness`; `mass_less_others` and
    `rank_less_others`, the score of a map on its own image less the mean score, on that image's
    truth, of the maps of all other images: what a map knows of this image and not of chests. Rows
    other than the explanation module's also have `nemt_less`, the explanation module's figure less
    this method's, paired by image, and `nemt_over`, the ratio of the two means. A figure that is
    defined for no image is absent; where it is defined for some, `images` says for how many.
    """
    scores = {}
    for method, attributions in maps.items():
        scores[method] = _scores(attributions, truth)
        if probability is not None:
            scores[method]["faithfulness"] = faithfulness(
                list(attributions), images, probability, index=index, device=device
            )
        done()
    table: dict[str, Row] = {}
    for method, columns in scores.items():
        table[method] = _present({k: mean(v, patients) for k, v in columns.items()})
        if NEMT in scores and method != NEMT:
            table[method] |= _against(scores[NEMT], columns, patients)
    return table


def _scores(attributions: Maps, truth: Regions) -> dict[str, Scores]:
    columns = {}
    for name, score in (("mass", relevance_mass), ("rank", relevance_rank)):
        scores = score(list(attributions), list(truth))  # (maps, images)
        own, count = np.diag(scores), len(scores)
        others = (scores.sum(axis=0) - own) / max(1, count - 1)
        columns[name] = own
        columns[f"{name}_less_others"] = own - others
    columns["complexity"] = complexity(list(attributions))
    columns["sparseness"] = sparseness(list(attributions))
    return columns


def _against(
    ours: Mapping[str, Scores], theirs: Mapping[str, Scores], patients: Sequence[str]
) -> dict[str, Row]:
    """The explanation module less, and over, another method."""
    less = {name: mean(ours[name] - theirs[name], patients) for name in ours}
    over = {
        name: figure(
            lambda rows, a=ours[name], b=theirs[name]: float(  # type: ignore[misc]
                a[rows].mean() / max(b[rows].mean(), 1e-12)
            ),
            patients,
        )
        for name in ("mass", "rank")
    }
    return {"nemt_less": _present(less), "nemt_over": over}


def _present(row: Mapping[str, dict[str, float] | None]) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def seconds(
    run: Callable[[Images], object],
    images: Images,
    patients: Sequence[str],
    *,
    device: str = "cpu",
    count: int = 8,
) -> dict[str, float]:
    """Wall-clock seconds an image, asked one at a time as a service is, warm, mean of `count`.

    A GPU is waited for. The first image is asked once before the clock starts.
    """
    chosen = range(min(count, len(images)))
    run(images[:1])
    taken = []
    for i in chosen:
        _wait(device)
        begin = time.perf_counter()
        run(images[i : i + 1])
        _wait(device)
        taken.append(time.perf_counter() - begin)
    return figure(average(np.array(taken)), [patients[i] for i in chosen])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
