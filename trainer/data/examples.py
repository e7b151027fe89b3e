"""Labelled images as the network sees them; each is decoded and preprocessed once, in any run."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nemt_dicom.errors import DataError
from nemt_dicom.model.preprocess import Geometry, Preprocessing

from .cases import SKIP_HINT, Case, name_few, read_radiograph
from .tensor_store import Decoded, Key, TensorStore

CHUNK = 64
"""Images between two commits to disk: what a killed run decodes again at most."""
THREADS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images as the network sees them, with their cases; they stay on disk until taken.

    store: (M, C, S, S) float32 in [0, 1], read-only memory map; C is 3 for photographs, else 1.
    rows: (N,) intp, the row of `store` of each case. skipped: the cases left out as unreadable,
    each as "name: reason".
    """

    cases: tuple[Case, ...]
    store: NDArray[np.float32]
    rows: NDArray[np.intp]
    geometries: tuple[Geometry, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        """N, the number of cases."""
        return len(self.cases)

    def take(self, indices: ArrayLike) -> NDArray[np.float32]:
        """(n, C, S, S) float32: a copy of the images of the cases `indices`."""
        chosen = self.rows[np.asarray(indices, np.intp)]
        return np.asarray(self.store[chosen])  # an index array always copies

    @property
    def images(self) -> NDArray[np.float32]:
        """(N, C, S, S) float32: a copy of all images; for sets that fit the memory."""
        return self.take(np.arange(len(self)))

    @property
    def labels(self) -> NDArray[np.float32]:
        """(N,) float32: 1 where the target is present, else 0."""
        return np.array([case.label for case in self.cases], np.float32)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) int64: the class where classes exclude each other, else the label."""
        found = (c.label if c.class_index is None else c.class_index for c in self.cases)
        return np.fromiter(found, np.int64, len(self))

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each image."""
        return tuple(case.patient for case in self.cases)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(N, 1, S, S): False for the black beside the image."""
        masks = {geometry: geometry.inside()[None] for geometry in set(self.geometries)}
        return np.stack([masks[geometry] for geometry in self.geometries])


def default_cache() -> Path:
    """$NEMT_CACHE, else nemt-dicom in the user's cache folder."""
    if given := os.environ.get("NEMT_CACHE"):
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "nemt-dicom"


def load_examples(
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    *,
    cache: Path,
    done: Callable[[], object],
    skip_bad: bool = False,
) -> Examples:
    """Every case's tensor, in order, decoded only where `cache` does not hold it yet.

    Several runs may fill the same cache at once. done: called for each case, from this thread.
    skip_bad: unreadable images are left out, and named in `Examples.skipped`.

    Raises `DataError` at the end where images cannot be read, and where the cache cannot be
    written. All cases must have the same number of channels, else `ValueError`.
    """
    channels = {3 if case.kind == "photograph" else 1 for case in cases}
    if len(channels) > 1:
        raise ValueError("radiographs and photographs cannot stand in one array")
    if not cases:
        raise DataError("there are no images to read")
    store = TensorStore.open(cache, preprocessing, channels.pop())
    found: list[tuple[Case, int]] = []
    bad: list[str] = []
    with ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
        for start in range(0, len(cases), CHUNK):
            chunk = cases[start : start + CHUNK]
            rows = _fill(store, chunk, preprocessing, pool, done)
            for case, row in zip(chunk, rows, strict=True):
                if isinstance(row, DataError):
                    bad.append(str(row))
                else:
                    found.append((case, row))
    if bad and not (skip_bad and found):
        few = name_few(bad, "; ")
        raise DataError(f"{len(bad)} of {len(cases)} images cannot be used: {few}; {SKIP_HINT}")
    return Examples(
        cases=tuple(case for case, _ in found),
        store=store.map(),
        rows=np.array([row for _, row in found], np.intp),
        geometries=tuple(store.geometries[row] for _, row in found),
        skipped=tuple(bad),
    )


def _fill(
    store: TensorStore,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    pool: ThreadPoolExecutor,
    done: Callable[[], object],
) -> list[int | DataError]:
    """The row of each case, after adding those that lacked; an error for what cannot be read."""

    def decode(case: Case) -> Decoded | DataError:
        try:
            return preprocessing(read_radiograph(case))
        except DataError as error:
            return error

    keys, told = list(pool.map(_key, cases)), 0
    failed: dict[Key, DataError] = {}
    if any(not isinstance(key, DataError) and key not in store.known for key in keys):
        # another run that fills the same cache waits here, and then finds these rows
        with store.locked():
            lacking = {
                key: case
                for key, case in zip(keys, cases, strict=True)
                if not isinstance(key, DataError) and key not in store.known
            }
            decoded: dict[Key, Decoded] = {}
            for key, result in zip(lacking, pool.map(decode, lacking.values()), strict=True):
                if isinstance(result, DataError):
                    failed[key] = result
                else:
                    decoded[key] = result
                told += 1
                done()
            store.add(decoded)
    for _ in range(len(cases) - told):
        done()
    return [
        key if isinstance(key, DataError) else failed[key] if key in failed else store.known[key]
        for key in keys
    ]


def _key(case: Case) -> Key | DataError:
    try:
        with case.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), case.kind
    except OSError as error:
        return DataError(f"{case.path}: cannot be read: {error}")


def require_apart(*splits: Examples) -> None:
    """Raises `DataError` where a file, whatever its names, is in two splits or has two labels.

    What is tested was learnt then. Files are the same where their bytes are.
    """
    first: dict[int, Case] = {}
    clashes = []
    for examples in splits:
        for case, row in zip(examples.cases, examples.rows.tolist(), strict=True):
            known = first.setdefault(row, case)
            if (known.split, known.label) != (case.split, case.label):
                clashes.append(f"{known.path} ({known.split}) and {case.path} ({case.split})")
    if clashes:
        raise DataError(
            f"{len(clashes)} images are the same file under two names, in two splits or with two "
            f"labels: {name_few(clashes)}; leave one of each out"
        )
