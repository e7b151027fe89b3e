"""What may be shown of an explanation, decided by its numbers alone."""

import json
from typing import Any

import numpy as np
import pytest

from nemt_dicom.errors import BadOutput
from nemt_dicom.model.explanation import Evidence, Explanation, Provenance, Verdict

PROVENANCE = Provenance(
    target="pneumonia",
    bundle_name="test",
    bundle_version="1.2",
    model_digest="0123456789abcdef" * 4,
    decision_threshold=0.5,
    mask_threshold=0.4,
    evidence_margin=0.1,
)


def explanation(
    probability: float = 0.8,
    occluded: float = 0.2,
    kept: float = 0.7,
    *,
    explain_below_threshold: bool = False,
    **changes: Any,
) -> Explanation:
    mask = np.zeros((30, 20), np.float32)
    mask[5:10, 4:12] = 0.9
    values: dict[str, Any] = {
        "mask": mask,
        "segment": mask >= 0.4,
        "evidence": Evidence(probability=probability, occluded=occluded, kept=kept),
        "provenance": PROVENANCE,
        "explain_below_threshold": explain_below_threshold,
    }
    return Explanation(**{**values, **changes})


EMPTY = {"segment": np.zeros((30, 20), bool)}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        pytest.param(explanation(), Verdict.EXPLAINED, id="explained"),
        pytest.param(explanation(0.5, 0.2), Verdict.EXPLAINED, id="at-the-threshold"),
        pytest.param(explanation(0.4999, 0.1), Verdict.BELOW_THRESHOLD, id="just-below"),
        pytest.param(
            explanation(0.3, 0.1, explain_below_threshold=True),
            Verdict.EXPLAINED,
            id="below-but-asked-for",
        ),
        pytest.param(
            explanation(0.3, 0.25, explain_below_threshold=True),
            Verdict.UNRELIABLE,
            id="below-asked-for-unreliable",
        ),
        pytest.param(explanation(0.75, 0.65), Verdict.UNRELIABLE, id="fall-equals-the-margin"),
        pytest.param(explanation(0.8, 0.69), Verdict.EXPLAINED, id="fall-above-the-margin"),
        pytest.param(explanation(0.8, 0.9), Verdict.UNRELIABLE, id="p-rises"),
        pytest.param(explanation(**EMPTY), Verdict.NO_REGION, id="no-region"),
        pytest.param(explanation(0.8, 0.8, **EMPTY), Verdict.NO_REGION, id="no-region-no-fall"),
        pytest.param(explanation(0.1, **EMPTY), Verdict.BELOW_THRESHOLD, id="below-no-region"),
    ],
)
def test_verdict(found: Explanation, verdict: Verdict) -> None:
    # 0.75 - 0.65 is 0.0999..., on the unreliable side of 0.1 as an equal fall must be
    assert found.verdict is verdict
    if verdict is Verdict.EXPLAINED:
        assert found.drawn is found.segment
    else:
        assert not found.drawn.any()
        assert found.drawn.shape == found.segment.shape


def test_below_threshold_is_told_even_when_drawn() -> None:
    assert explanation(0.3, 0.1, explain_below_threshold=True).below_threshold
    assert not explanation().below_threshold


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["probability", "occluded", "kept", "mask"])
def test_number_that_is_not_finite_is_bad_output(where: str, bad: float) -> None:
    changes: dict[str, Any] = {where: bad}
    if where == "mask":
        mask = np.zeros((30, 20), np.float32)
        mask[29, 19] = bad
        changes = {"mask": mask}
    with pytest.raises(BadOutput, match="NaN or infinity"):
        explanation(**changes)


def test_segment_of_another_shape_is_bad_output() -> None:
    with pytest.raises(BadOutput, match="differ"):
        explanation(segment=np.zeros((20, 30), bool))


def test_empty_explanation_is_valid() -> None:
    mask = np.zeros((30, 20), np.float32)
    assert explanation(mask=mask, segment=mask > 0).verdict is Verdict.NO_REGION


def test_summary_is_json_and_holds_the_figures() -> None:
    found = json.loads(json.dumps(explanation(0.81234, 0.2, 0.7).summary()))
    assert found["verdict"] == "explained"
    assert found["probability"] == 0.8123
    assert found["probability_occluded"] == 0.2
    assert found["probability_kept"] == 0.7
    assert found["fall"] == pytest.approx(0.6123, abs=1e-4)
    assert found["segment_share"] == pytest.approx(40 / 600, abs=1e-4)
    assert (found["decision_threshold"], found["mask_threshold"]) == (0.5, 0.4)
    assert found["evidence_margin"] == 0.1
    assert found["bundle"] == "test 1.2"
    assert found["model_digest"].startswith(PROVENANCE.short_digest)
    assert len(PROVENANCE.short_digest) == 12
