"""What an evaluation is asked for, with which methods, and what it found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.model.bundle import Bundle

from ..arrays import Regions
from ..data.cases import Case, Dataset
from ..data.examples import Examples, load_examples
from ..data.ground_truth import SOURCES, ground_truth
from ..progress import Progress
from .decisions import Device
from .maps import Attributed
from .methods import (
    METHODS,
    NEMT,
    SHUFFLED,
    Method,
    for_representations,
    mean_of_boxes,
    shuffled_module,
)
from .scores import Columns, Evaluated

MEAN_OF_BOXES = "mean_of_boxes"
IN_TRAINING = (
    NEMT,
    "gradcam++",
    "integrated_gradients",
    "gradient_shap",
    "relax",
    "u_relax",
    "centred_blob",
    "random",
    MEAN_OF_BOXES,
)
"""Methods that the end of a training run compares: those that a CPU can afford."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    methods: their keys; those that a bundle's kind has are compared. thorough: removal curves,
    ROAD, subgroups, dependence on the model, stability, silence. skip_bad: images that
    cannot be read are left out, with a note, instead of an error.
    """

    methods: tuple[str, ...] = IN_TRAINING
    split: str = "test"
    thorough: bool = False
    skip_bad: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """All that was measured.

    summary: every figure, JSON-able. examples: the images of the split, with the answer to each:
    probability (M,) or embedding (M, D). rows: those of them that the methods are compared on,
    `compared`. attributed, columns: each method's maps and scores of them.
    """

    summary: dict[str, Any]
    examples: Examples
    answer: NDArray[np.float32]
    rows: NDArray[np.intp]
    compared: Evaluated
    attributed: Mapping[str, Attributed]
    columns: Mapping[str, Columns]

    @property
    def patients(self) -> list[str]:
        """Of the images compared."""
        return [self.examples.patients[i] for i in self.rows]


def known_methods(bundle: Bundle, device: Device) -> dict[str, Method]:
    """The methods that fit what a bundle explains, but for those that need training data."""
    representation = bundle.architecture.explains == "representation"
    return for_representations(device) if representation else METHODS


def methods_of(
    plan: Plan,
    bundle: Bundle,
    dataset: Dataset,
    cache: Path,
    device: Device,
    progress: Progress,
) -> dict[str, Method]:
    """The methods of the plan that the bundle's kind has; the explanation module always, and what
    it is with shuffled weights.
    """
    known = known_methods(bundle, device)
    methods = {key: method for key, method in known.items() if key in (NEMT, *plan.methods)}
    methods[SHUFFLED] = shuffled_module()
    if MEAN_OF_BOXES in plan.methods:
        regions = _training_regions(dataset, bundle, cache, plan.split, progress)
        if regions:
            methods[MEAN_OF_BOXES] = mean_of_boxes(regions)
    return methods


def _training_regions(
    dataset: Dataset, bundle: Bundle, cache: Path, evaluated: str, progress: Progress
) -> list[Regions]:
    cases: list[Case] = [
        case
        for case in dataset.cases
        if case.split not in ("test", evaluated) and case.label and case.source in SOURCES
    ]
    if not cases:
        return []
    progress.stage("training ground truth", len(cases))
    examples = load_examples(
        cases, bundle.preprocessing, cache=cache, done=progress.step, skip_bad=True
    )
    return list(ground_truth(examples)[1])
