"""What an evaluation gives: the tree of figures, and the arrays that report and CSV need."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.model.evaluation import Evaluation, MethodResult, Scope, Seconds

from ..data.cases import Dataset, fingerprint
from ..data.examples import Examples
from ..provenance import code_state
from ..statistics import Patients
from .maps import Attributed
from .methods import Method
from .scores import Columns, Compared, MethodScores, mean_curves
from .settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """All that was measured.

    results: every figure.
    examples: the images of the split.
    answer: of each of them: probability (M,) or embedding (M, D).
    rows: the images among them that the methods are compared on, (N,).
    compared: these images.
    attributed: each method's maps of them.
    columns: each method's scores of them.
    """

    results: Evaluation
    examples: Examples
    answer: NDArray[np.float32]
    rows: NDArray[np.intp]
    compared: Compared
    attributed: Mapping[str, Attributed]
    columns: Mapping[str, Columns]

    @property
    def patients(self) -> Patients:
        """The patients of the images compared."""
        every = Patients(self.examples.patients, self.compared.settings.resamples)
        return every.take(self.rows)


def scope(
    dataset: Dataset,
    examples: Examples,
    boxed: NDArray[np.intp],
    settings: EvaluationSettings,
    device: str,
) -> Scope:
    """Which images were looked at, by which code, on what. device: as people name it."""
    notes = list(dataset.notes)
    if count := len(examples.skipped):  # without file names: a bundle keeps the notes
        notes.append(f"{count} images could not be read and are left out")
    return Scope(
        split=settings.split,
        images=len(examples),
        positives=int(examples.labels.sum()),
        with_ground_truth=len(boxed),
        unreadable=len(examples.skipped),
        patients=len(set(examples.patients)),
        sources=tuple(sorted({case.source for case in examples.cases})),
        fingerprint=fingerprint(examples.cases),
        notes=tuple(notes),
        thorough=settings.thorough,
        device=device,
        code=code_state(),
    )


def method_result(
    method: Method,
    attributed: Attributed,
    figures: MethodScores,
    seconds: Seconds | None = None,
    compared: Compared | None = None,
) -> MethodResult:
    """All figures of one method. compared: the images to draw its mean curves of; None: none."""
    curves = {} if compared is None else mean_curves(compared, attributed)
    return MethodResult(
        name=method.name,
        library=method.software,
        settings=method.settings,
        asked=len(attributed.by_row) + len(attributed.failed),
        failed=len(attributed.failed),
        failures=tuple(sorted(set(attributed.failed.values()))),
        scores=figures.scores,
        nemt_less=figures.nemt_less,
        nemt_over=figures.nemt_over,
        seconds=seconds,
        curves={name: tuple(round(float(p), 4) for p in curve) for name, curve in curves.items()},
    )
