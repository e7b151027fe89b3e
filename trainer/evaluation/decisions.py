"""What a bundle decides about labelled images: AUC, sensitivity, and what would be drawn."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.config import ExplanationSettings
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Decisions, Drawn, Figure, MaskArea
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.explanation import Verdict

from ..arrays import Maps
from ..data.cases import read_radiograph
from ..data.examples import Examples
from ..progress import Progress
from ..statistics import Patients, auc, average, figure, quotient

Device = Literal["cpu", "cuda"]
Probabilities = NDArray[np.float32]


def aucs(examples: Examples, probability: Probabilities, patients: Patients) -> dict[str, Figure]:
    """AUC of all images ("all") and of each source, if both labels occur. probability: (N,)."""
    sources = sorted({case.source for case in examples.cases})
    areas = {}
    for name, chosen in [("all", sources), *((source, [source]) for source in sources)]:
        rows = np.array([i for i, case in enumerate(examples.cases) if case.source in chosen])
        area = auc(probability[rows], examples.labels[rows], patients.take(rows))
        if area is not None:
            areas[name] = area
    return areas


def mask_area(examples: Examples, masks: Maps, patients: Patients) -> MaskArea:
    """Mean of the soft masks (N, S, S), before any threshold, by label, and their ratio.

    There is no ratio if a label does not occur, or if the masks of all positives are empty.
    """
    area = masks.mean(axis=(1, 2)).astype(np.float64)
    positives, negatives = (_of_label(examples, area, label, patients) for label in (1, 0))
    over = None
    if positives is not None and negatives is not None and positives.mean > 0:
        sums = [np.where(examples.labels == label, area, 0) for label in (0, 1)]
        counts = [examples.labels == label for label in (0, 1)]

        def negatives_over_positives(rows: NDArray[np.intp]) -> float:
            if not all(count[rows].any() for count in counts):
                return float("nan")  # a resample without one of the labels says nothing
            low, high = (s[rows].sum() / c[rows].sum() for s, c in zip(sums, counts, strict=True))
            return quotient(low, high)

        over = figure(negatives_over_positives, patients)
    return MaskArea(positives=positives, negatives=negatives, negatives_over_positives=over)


def decisions(
    examples: Examples, probability: Probabilities, threshold: float, patients: Patients
) -> Decisions:
    """Sensitivity and specificity at the decision threshold, each if its label occurs."""
    reached = probability >= threshold
    return Decisions(
        sensitivity=_of_label(examples, reached, 1, patients),
        specificity=_of_label(examples, ~reached, 0, patients),
    )


def drawn(
    bundle: Bundle,
    examples: Examples,
    boxed: NDArray[np.intp],
    patients: Patients,
    device: Device,
    progress: Progress,
) -> Drawn:
    """The share of images that get a segment drawn, asked one by one as the service does.

    boxed: rows of the images with ground truth.
    """
    explainer = Explainer(bundle, ExplanationSettings(device=device))
    progress.stage("as it is served", len(examples))
    verdicts = np.empty(len(examples), dtype=object)
    for i, case in enumerate(examples.cases):
        verdicts[i] = explainer.explain([read_radiograph(case)])[0].verdict
        progress.step()
    shown = verdicts == Verdict.EXPLAINED
    counts = {v.value: int((verdicts[boxed] == v).sum()) for v in Verdict} if len(boxed) else {}
    return Drawn(
        positives=_of_label(examples, shown, 1, patients),
        negatives=_of_label(examples, shown, 0, patients),
        boxed=figure(average(shown[boxed]), patients.take(boxed)) if len(boxed) else None,
        boxed_verdicts=counts,
    )


def _of_label(
    examples: Examples, values: NDArray[Any], label: int, patients: Patients
) -> Figure | None:
    """The mean over the images with this label; None if there are none."""
    rows = np.flatnonzero(examples.labels == label)
    return figure(average(values[rows]), patients.take(rows)) if len(rows) else None
