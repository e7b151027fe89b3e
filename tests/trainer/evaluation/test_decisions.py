"""Areas and decisions of labelled images with known answers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainer.evaluation.decisions import aucs, decisions, mask_area
from trainer.statistics import Patients


def labelled(positives: int, count: int) -> Any:
    cases = [SimpleNamespace(label=int(i < positives), source="AB"[i % 2]) for i in range(count)]
    return SimpleNamespace(cases=cases, labels=np.array([case.label for case in cases], np.float32))


PATIENTS = Patients(tuple(str(i) for i in range(30)), 300)


def test_a_resample_without_a_label_says_nothing_of_areas() -> None:
    masks = np.full((30, 4, 4), 0.1, np.float32)
    masks[:3] = 0.4
    over = mask_area(labelled(3, 30), masks, PATIENTS).negatives_over_positives
    assert over is not None
    assert (over.mean, over.lo, over.hi) == pytest.approx((0.25, 0.25, 0.25))


def test_masks_that_are_empty_on_all_positives_have_no_ratio() -> None:
    masks = np.full((30, 4, 4), 0.1, np.float32)
    masks[:3] = 0
    area = mask_area(labelled(3, 30), masks, PATIENTS)
    assert area.positives is not None
    assert area.positives.mean == 0
    assert area.negatives_over_positives is None


def test_positives_alone_have_an_area_and_no_auc() -> None:
    examples = labelled(30, 30)
    area = mask_area(examples, np.full((30, 4, 4), 0.5, np.float32), PATIENTS)
    assert area.positives is not None
    assert area.negatives is area.negatives_over_positives is None
    p = np.linspace(0, 1, 30, dtype=np.float32)
    assert aucs(examples, p, PATIENTS) == {}
    decided = decisions(examples, p, 0.5, PATIENTS)
    assert decided.specificity is None
    assert decided.sensitivity is not None
    assert decided.sensitivity.mean == 0.5


def test_auc_of_all_and_of_each_source() -> None:
    examples = labelled(10, 30)
    p = examples.labels * 0.9
    areas = aucs(examples, p, PATIENTS)
    assert {name: (area.mean, area.n) for name, area in areas.items()} == {
        "all": (1, 30), "A": (1, 15), "B": (1, 15),
    }  # fmt: skip
