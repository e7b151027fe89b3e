"""Every method's maps of the same images, one image after the other, each computed once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..progress import Progress
from .methods import Method
from .result_store import ResultStore, digest

SUBSET = 20
"""Images that every method sees: without a GPU, a slow method sees no others."""
SLOW = 5.0
"""Seconds an image from which a method is slow."""
SHARED = {"u_relax": "relax"}
"""Methods that have the work of another one's for nothing, and are as slow as that without it."""
SEED = 0

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, FloatingPointError)


@dataclass(kw_only=True, eq=False)
class Attributed:
    """What a method gave.

    found: the map (S, S) of each image it has one of, by row. failed: rows of images on which it
    failed, with the reason. whole: whether it was asked for all images, not the subset alone.
    """

    found: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    whole: bool = True

    @property
    def rows(self) -> NDArray[np.intp]:
        """The rows that have a map, ascending."""
        return np.array(sorted(self.found), np.intp)

    @property
    def maps(self) -> Maps:
        """(n, S, S), in the order of `rows`."""
        return np.stack([self.found[row] for row in self.rows.tolist()])


def seeded_subset(count: int) -> NDArray[np.intp]:
    """Up to `SUBSET` rows of `count`, the same ones for every method, bundle and run."""
    return np.random.default_rng(SEED).permutation(count)[:SUBSET]


def attribute(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    store: ResultStore | None,
    progress: Progress,
) -> dict[str, Attributed]:
    """Every method's maps of images (N, C, S, S).

    A map that is not finite, and an error of the method, count as failures of that image. The
    seeded subset comes first; a method that takes more than `SLOW` seconds an image of it, without
    a GPU, is asked for no more.
    """
    device = next(network.parameters()).device.type
    subset = seeded_subset(len(images)).tolist()
    order = [*subset, *(row for row in range(len(images)) if row not in set(subset))]
    results = {key: Attributed() for key in methods}
    taken: dict[str, list[float]] = {key: [] for key in methods}
    progress.stage("maps", len(order) * len(methods))
    for place, row in enumerate(order):
        image = images[row : row + 1]  # one object for all methods: RELAX shares its work by it
        for key, method in methods.items():
            if place == len(subset) and device == "cpu" and len(images) > len(subset):
                seconds = taken.get(SHARED.get(key, key)) or taken[key]
                results[key].whole = not (seconds and np.mean(seconds) > SLOW)
            if results[key].whole:
                _one(network, method, image, row, results[key], taken[key], store)
            progress.step(method.name)
    return results


def _one(
    network: ExplainedNetwork,
    method: Method,
    image: Images,
    row: int,
    result: Attributed,
    taken: list[float],
    store: ResultStore | None,
) -> None:
    code = store.code.maps if store else ""
    of = ("map", code, str(sorted(method.describe().items())), digest(image))
    known = store.load(*of) if store else None
    if known is None:
        begin = time.perf_counter()
        try:
            found = np.ascontiguousarray(method.maps(network, image)[0], np.float32)
        except _FAILURES as error:
            result.failed[row] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        if not np.isfinite(found).all():
            result.failed[row] = "the map is not finite"
            return
        known = {"map": found, "seconds": np.array(time.perf_counter() - begin)}
        if store:
            store.save(known, *of)
    result.found[row] = known["map"]
    taken.append(float(known["seconds"]))
