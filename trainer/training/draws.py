"""Random numbers that depend on nothing but what they are for.

Every number is a function of the run's seed, the stage, the epoch, the step, the use and the place
in the batch. So a run that was killed goes on as if it had not been, two processes that share a
batch draw what one process alone would, and an example that an epoch takes twice is drawn for anew.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Draws:
    """The random numbers of some examples of one step.

    key: what the numbers are for, such as (seed, stage, epoch, step).
    places: places of the examples in the batch of all processes.
    """

    def __init__(self, key: Sequence[int | str], places: NDArray[np.intp]) -> None:
        self._key = tuple(key)
        self._places = places

    def uniform(self, use: str, count: int) -> Tensor:
        """(len(places), count) float32 in [0, 1), the same for the same key, use and place."""
        values = np.stack(
            [
                _generator((*self._key, use), int(place)).random(count, np.float32)
                for place in self._places
            ]
        )
        return torch.from_numpy(values)


def shuffled(key: Sequence[int | str], count: int) -> NDArray[np.intp]:
    """The numbers 0 to `count` - 1 in a random order that depends on the key alone."""
    return _generator((*key, "order"), 0).permutation(count)


def balanced(key: Sequence[int | str], chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """N numbers below N, (N,), of which every second one is chosen. chosen: (N,) bool.

    Each kind comes in a random order. The smaller kind comes again, in another order, until there
    are enough of it. If there is only one kind, the result is `shuffled`.
    """
    kinds = [np.flatnonzero(chosen), np.flatnonzero(~chosen)]
    if not all(map(len, kinds)):
        return shuffled(key, len(chosen))
    order = np.empty(len(chosen), np.intp)
    for place, kind in enumerate(kinds):
        wanted = order[place::2]
        rounds = range(-(-len(wanted) // len(kind)))
        again = [kind[shuffled((*key, place, n), len(kind))] for n in rounds]
        wanted[:] = np.concatenate(again)[: len(wanted)]
    return order


def _generator(key: Sequence[int | str], place: int) -> np.random.Generator:
    digest = hashlib.sha256(repr(tuple(key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=[int.from_bytes(digest[:8], "big"), place]))
