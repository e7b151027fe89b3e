"""Every method's maps of the same images, one image after the other, each computed once."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..inference import device_of
from ..progress import Progress
from .methods import FAILURES, Method
from .result_store import ResultStore, digest
from .settings import EvaluationSettings
from .subset import subset

Clock = Callable[[], float]
"""Seconds since some moment, as `time.perf_counter`."""

SHARED = {"u_relax": "relax"}
"""Methods that cost nothing after another method's work, and are as slow as it without that."""


@dataclass(kw_only=True, eq=False)
class Attributed:
    """The maps of one method.

    by_row: the map (S, S) of each image that has one, by row.
    failed: the reason for each row on which the method failed.
    whole: whether the method was asked for all images, not for the subset alone.
    """

    by_row: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    whole: bool = True

    @property
    def rows(self) -> NDArray[np.intp]:
        """The rows that have a map, ascending."""
        return np.array(sorted(self.by_row), np.intp)

    @property
    def maps(self) -> Maps:
        """(n, S, S), in the order of `rows`."""
        return np.stack([self.by_row[row] for row in self.rows.tolist()])


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """A method while it is asked, with the seconds that each image took."""

    network: ExplainedNetwork
    method: Method
    store: ResultStore | None
    clock: Clock
    result: Attributed = field(default_factory=Attributed)
    seconds: list[float] = field(default_factory=list)


def attribute(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    settings: EvaluationSettings,
    progress: Progress,
    *,
    store: ResultStore | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Attributed]:
    """Every method's maps of images (N, C, S, S).

    A map that is not finite, and an error of the method, count as failures of that image. The
    seeded subset comes first. Without a GPU, a method that takes more than `slow_seconds` an image
    of the subset is not asked for the rest.
    """
    chosen = subset(len(images), settings.subset).tolist()
    order = [*chosen, *(row for row in range(len(images)) if row not in set(chosen))]
    limited = device_of(network).type == "cpu" and len(images) > len(chosen)
    asking = {
        key: _Asking(network=network, method=method, store=store, clock=clock)
        for key, method in methods.items()
    }
    progress.stage("maps", len(order) * len(methods))
    for place, row in enumerate(order):
        image = images[row : row + 1]  # one object for all methods: RELAX shares its work by it
        for key, one in asking.items():
            if limited and place == len(chosen):
                seconds = asking[SHARED.get(key, key)].seconds if SHARED.get(key) in asking else []
                mean = np.mean(seconds or one.seconds or [0.0])
                one.result.whole = bool(mean <= settings.slow_seconds)
            if one.result.whole:
                _ask(one, image, row)
            progress.step(one.method.name)
    return {key: one.result for key, one in asking.items()}


def _ask(one: _Asking, image: Images, row: int) -> None:
    code = one.store.code.maps if one.store else ""
    key = ("map", code, str(one.method.describe()), digest(image))
    kept = one.store.load(*key) if one.store else None
    if kept is None:
        begin = one.clock()
        try:
            new = np.ascontiguousarray(one.method.maps(one.network, image)[0], np.float32)
        except FAILURES as error:
            one.result.failed[row] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        if not np.isfinite(new).all():
            one.result.failed[row] = "the map is not finite"
            return
        kept = {"map": new, "seconds": np.array(one.clock() - begin)}
        if one.store:
            one.store.save(kept, *key)
    one.result.by_row[row] = kept["map"]
    one.seconds.append(float(kept["seconds"]))
