"""What a bundle decides of labelled images: AUC, sensitivity, and what would be drawn."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.config import ExplanationSettings
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.explanation import Verdict

from ..data.cases import read_radiograph
from ..data.examples import Examples
from ..progress import Progress
from ..statistics import area_under_curve, average, figure

Device = Literal["cpu", "cuda"]
Probabilities = NDArray[np.float32]


def auc(examples: Examples, probability: Probabilities) -> dict[str, dict[str, float]]:
    """Of all images and of each source; a source with one label alone has none."""
    found = {}
    sources = sorted({case.source for case in examples.cases})
    for name, chosen in [("all", sources), *((source, [source]) for source in sources)]:
        rows = np.array([i for i, case in enumerate(examples.cases) if case.source in chosen])
        p, y = probability[rows], examples.labels[rows]
        if 0 < y.sum() < len(y):
            found[name] = figure(
                lambda r, p=p, y=y: area_under_curve(p[r], y[r]),  # type: ignore[misc]
                [examples.patients[i] for i in rows],
            )
    return found


def mask_areas(examples: Examples, masks: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Mean of the soft mask, before any gating, on `positives` and `negatives`, and their ratio."""
    area = masks.mean(axis=(1, 2)).astype(np.float64)
    found = _by_label(examples, area)
    if len(found) == 2:
        on = [np.where(examples.labels == label, area, 0) for label in (0, 1)]
        share = [examples.labels == label for label in (0, 1)]

        def negatives_over_positives(rows: NDArray[np.intp]) -> float:
            if not all(s[rows].any() for s in share):
                return float("nan")  # a resample without one of the labels says nothing
            low, high = (a[rows].sum() / s[rows].sum() for a, s in zip(on, share, strict=True))
            return float(low / max(high, 1e-12))

        found["negatives_over_positives"] = figure(negatives_over_positives, examples.patients)
    return found


def decisions(
    examples: Examples, probability: Probabilities, threshold: float
) -> dict[str, dict[str, float]]:
    """Sensitivity and specificity at the decision threshold, each where its label occurs."""
    positive = probability >= threshold
    right = _by_label(examples, np.where(examples.labels > 0.5, positive, ~positive))
    names = {"positives": "sensitivity", "negatives": "specificity"}
    return {names[label]: value for label, value in right.items()}


def drawn(
    bundle: Bundle,
    examples: Examples,
    boxed: NDArray[np.intp],
    device: Device,
    progress: Progress,
) -> dict[str, Any]:
    """Which share of images gets a segment drawn, asked one by one as the service does."""
    explainer = Explainer(bundle, ExplanationSettings(device=device))
    progress.stage("as it is served", len(examples))
    verdicts = np.empty(len(examples), dtype=object)
    for i, case in enumerate(examples.cases):
        verdicts[i] = explainer.explain([read_radiograph(case)])[0].verdict
        progress.step()
    shown = verdicts == Verdict.EXPLAINED
    found: dict[str, Any] = dict(_by_label(examples, shown))
    if len(boxed):
        found["boxed"] = figure(average(shown[boxed]), [examples.patients[i] for i in boxed])
        found["boxed_verdicts"] = {v.value: int((verdicts[boxed] == v).sum()) for v in Verdict}
    return found


def _by_label(examples: Examples, values: NDArray[Any]) -> dict[str, dict[str, float]]:
    found = {}
    for name, label in (("positives", 1), ("negatives", 0)):
        rows = np.flatnonzero(examples.labels == label)
        if len(rows):
            found[name] = figure(average(values[rows]), [examples.patients[i] for i in rows])
    return found
