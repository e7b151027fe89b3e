"""Labelled images as the network sees them. Each image is decoded once, for all runs together."""

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

from .cases import Case, read_radiograph
from .listings import SKIP_HINT, name_few
from .tensor_store import Decoded, Key, TensorStore

CHUNK = 64
"""Images between two commits to disk: a killed run decodes at most this many again."""
THREADS = 16
"""Most threads that decode at once; never more than the process has CPUs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images as the network sees them, with their cases. `take` reads them from disk.

    cases: the N cases.
    store: (M, C, S, S) float32 in [0, 1], 0 shown black; read-only memory map. C is 3 for
        photographs, otherwise 1.
    rows: (N,) intp: the row of each case in `store`.
    geometries: the geometry of each case.
    skipped: unreadable images that are left out, each as "name: reason".
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
        """(n, C, S, S) float32: a copy of the images of some cases.

        indices: (n,) numbers of cases, from 0.
        """
        chosen = self.rows[np.asarray(indices, np.intp)]
        return np.asarray(self.store[chosen])  # an index array always copies

    @property
    def images(self) -> NDArray[np.float32]:
        """(N, C, S, S) float32: a copy of all images. They must fit into memory."""
        return self.take(np.arange(len(self)))

    @property
    def labels(self) -> NDArray[np.float32]:
        """(N,) float32: 1 if the target is present, otherwise 0."""
        return np.array([case.label for case in self.cases], np.float32)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) int64: the class if classes exclude each other, otherwise the label."""
        classes = (c.label if c.class_index is None else c.class_index for c in self.cases)
        return np.fromiter(classes, np.int64, len(self))

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each image."""
        return tuple(case.patient for case in self.cases)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(N, 1, S, S) bool: True inside the image, False for the black padding beside it."""
        masks = {geometry: geometry.inside()[None] for geometry in set(self.geometries)}
        return np.stack([masks[geometry] for geometry in self.geometries])


def default_cache() -> Path:
    """The folder $NEMT_CACHE; if it is not set, `nemt-dicom` in the user's cache folder."""
    if folder := os.environ.get("NEMT_CACHE"):
        return Path(folder)
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
    """The tensor of each case, in order. Images that the cache does not hold are decoded.

    cache: folder of the cache. Several runs may fill it at the same time.
    done: called for each case, from this thread.
    skip_bad: unreadable images are left out and named in `Examples.skipped`.

    Raises `DataError` if the cache cannot be used, or at the end if images cannot be read. Raises
    `ValueError` if photographs and radiographs are mixed.
    """
    channels = {3 if case.kind == "photograph" else 1 for case in cases}
    if len(channels) > 1:
        raise ValueError("radiographs and photographs cannot be in one array")
    if not cases:
        raise DataError("there are no images to read")
    store = TensorStore.open(cache, preprocessing, channels.pop())
    readable: list[tuple[Case, int]] = []
    bad: list[str] = []
    with ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool:
        for start in range(0, len(cases), CHUNK):
            chunk = cases[start : start + CHUNK]
            rows = _fill(store, chunk, preprocessing, pool, done)
            for case, row in zip(chunk, rows, strict=True):
                if isinstance(row, DataError):
                    bad.append(str(row))
                else:
                    readable.append((case, row))
    if bad and not (skip_bad and readable):
        few = name_few(bad, "; ")
        raise DataError(f"{len(bad)} of {len(cases)} images cannot be used: {few}; {SKIP_HINT}")
    return Examples(
        cases=tuple(case for case, _ in readable),
        store=store.map(),
        rows=np.array([row for _, row in readable], np.intp),
        geometries=tuple(store.geometries[row] for _, row in readable),
        skipped=tuple(bad),
    )


def _fill(
    store: TensorStore,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    pool: ThreadPoolExecutor,
    done: Callable[[], object],
) -> list[int | DataError]:
    """The row of each case. Missing rows are added first. An unreadable case gives an error."""

    def decode(case: Case) -> Decoded | DataError:
        try:
            return preprocessing(read_radiograph(case))
        except DataError as error:
            return error

    keys, reported = list(pool.map(_key, cases)), 0
    failed: dict[Key, DataError] = {}
    if any(not isinstance(key, DataError) and key not in store.known for key in keys):
        # A second run that fills the same cache waits here. Then it reads the rows of this run.
        with store.locked():
            missing = {
                key: case
                for key, case in zip(keys, cases, strict=True)
                if not isinstance(key, DataError) and key not in store.known
            }
            decoded: dict[Key, Decoded] = {}
            for key, result in zip(missing, pool.map(decode, missing.values()), strict=True):
                if isinstance(result, DataError):
                    failed[key] = result
                else:
                    decoded[key] = result
                reported += 1
                done()
            store.add(decoded)
    for _ in range(len(cases) - reported):
        done()
    return [
        key if isinstance(key, DataError) else failed[key] if key in failed else store.known[key]
        for key in keys
    ]


def _key(case: Case) -> Key | DataError:
    """The cache key of a case, or an error if its file cannot be read."""
    try:
        with case.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), case.kind
    except OSError as error:
        return DataError(f"{case.path}: cannot be read: {error}")


def require_apart(*splits: Examples) -> None:
    """Raises `DataError` if one file is in two splits or has two labels.

    Such a file would be in the training and in the test. Files with the same bytes are one file,
    even if their names differ.
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
            f"labels: {name_few(clashes)}; remove one of each pair"
        )
