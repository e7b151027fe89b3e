"""The standard error of a classifier's AUC."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from trainer.training.classifier import auc_by_source, auc_standard_error


@dataclass
class Labelled:
    """Examples of two sources: of NIH 47 positives and 64 negatives, of RSNA 5 and 16."""

    labels: np.ndarray
    cases: list[SimpleNamespace]


def test_the_standard_error_of_an_auc_is_what_repetition_shows() -> None:
    counts = {"NIH": (47, 64), "RSNA": (5, 16)}
    examples = Labelled(
        labels=np.concatenate([np.repeat([1.0, 0.0], each) for each in counts.values()]),
        cases=[SimpleNamespace(source=s) for s, each in counts.items() for _ in range(sum(each))],
    )
    random = np.random.default_rng(1)
    apart = 1.2  # normal scores: an AUC of 0.80
    drawn = [
        np.mean(list(auc_by_source(examples, random.normal(apart * examples.labels)).values()))
        for _ in range(500)
    ]
    error = auc_standard_error(examples, float(np.mean(drawn)))
    assert 1.0 < error / np.std(drawn) < 1.3  # it is known to err on the large side
