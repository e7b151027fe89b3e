"""Which methods an evaluation compares."""

from pathlib import Path

from nemt_dicom.model.bundle import Bundle

from ..arrays import Regions
from ..data.cases import Case, Dataset
from ..data.examples import load_examples
from ..data.ground_truth import SOURCES, ground_truth
from ..progress import Progress
from .methods import (
    FOR_REPRESENTATIONS,
    METHODS,
    Method,
    mean_of_boxes,
    methods,
    methods_for_representations,
    shuffled_module,
)
from .settings import MEAN_OF_BOXES, NEMT, SHUFFLED, EvaluationSettings


def known_keys(bundle: Bundle) -> tuple[str, ...]:
    """Keys of the methods that fit the bundle's kind."""
    representation = bundle.architecture.explains == "representation"
    return (*(FOR_REPRESENTATIONS if representation else METHODS), MEAN_OF_BOXES)


def chosen_methods(
    settings: EvaluationSettings,
    bundle: Bundle,
    dataset: Dataset,
    cache: Path,
    device: str,
    progress: Progress,
) -> dict[str, Method]:
    """The methods of the settings that the bundle's kind has, by key.

    The explanation module is always among them, and so is the module with shuffled weights.
    """
    representation = bundle.architecture.explains == "representation"
    known = methods_for_representations(settings, device) if representation else methods(settings)
    chosen = {k: method for k, method in known.items() if k in (NEMT, *settings.methods)}
    chosen[SHUFFLED] = shuffled_module()
    if MEAN_OF_BOXES in settings.methods:
        regions = _training_regions(dataset, bundle, cache, settings.split, progress)
        if regions:
            chosen[MEAN_OF_BOXES] = mean_of_boxes(regions)
    return chosen


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
