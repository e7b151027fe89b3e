"""The questions, on figures with known answers."""

from typing import Any

import numpy as np
import pytest

from nemt_dicom.model.evaluation import (
    Check,
    Figure,
    MaskArea,
    MethodResult,
    Randomisation,
    RandomisedMethod,
    Scores,
    Stability,
)
from trainer.evaluation.checks import QUESTIONS, checks, verdict
from trainer.evaluation.maps import Attributed
from trainer.evaluation.methods import methods
from trainer.evaluation.results import method_result
from trainer.evaluation.scores import Compared, MethodScores, methods_table, scores
from trainer.evaluation.settings import NEMT, SHUFFLED, EvaluationSettings
from trainer.statistics import Patients

RANDOM = methods(EvaluationSettings())["random"]


def result(figures: MethodScores, failed: int = 0) -> MethodResult:
    reasons = Attributed(failed=dict.fromkeys(range(failed), "no"))
    return method_result(RANDOM, reasons, figures)


def about(lo: float, hi: float) -> Figure:
    return Figure(mean=(lo + hi) / 2, lo=lo, hi=hi, n=9)


def test_the_summary_line() -> None:
    good = Check(question="does it?", passed=True, figure="1")
    bad = Check(question="is it?", passed=False, figure="0.1")
    assert verdict([good] * QUESTIONS) == "PASS: 7 of 7 checks pass"
    assert verdict([good]) == "PASS: 1 of 1 checks pass, 6 could not be asked"
    line = verdict([good, bad] * 3)
    assert line == "FAIL: 3 of 6 checks pass, 1 could not be asked" + ". Is it? No: 0.1" * 3


def test_images_without_an_answer_are_no_question_more() -> None:
    module = result(MethodScores(scores=Scores(faithfulness=about(0.4, 0.6))), failed=3)
    answers = checks({NEMT: module}, MaskArea())
    assert verdict(answers) == (
        "FAIL: 1 of 2 checks pass, 6 could not be asked. "
        "Does it answer for every image? No: 3 images failed"
    )
    whole = [answers[0]] * QUESTIONS + list(answers[1:])
    assert verdict(whole).startswith("FAIL: 7 of 8 checks pass. Does")


@pytest.mark.parametrize("good", [True, False])
def test_every_question_can_be_answered_either_way(good: bool) -> None:
    high, low = about(0.5, 0.7), about(-0.1, 0.1)
    mass = high if good else low
    module = MethodScores(
        scores=Scores(relevance_mass=mass, relevance_mass_less_others=mass, faithfulness=mass)
    )
    shuffled = MethodScores(scores=Scores(), nemt_less=Scores(relevance_mass=mass))
    random_model = RandomisedMethod(name="x", fully_randomised=low, survives=not good)
    still, moved = Stability(iou=high), Stability(iou=high if good else low)
    parts: dict[str, Any] = {
        "truth_share": about(0.2, 0.4),
        "randomisation": Randomisation(layers=(), methods={NEMT: random_model}),
        "stability": {NEMT: {"noise": still, "moved": moved}},
    }
    methods = {NEMT: result(module), SHUFFLED: result(shuffled)}
    area = MaskArea(negatives_over_positives=about(0.2, 0.8 if good else 1.2))
    answers = checks(methods, area, has_target=True, **parts)
    assert [check.passed for check in answers] == [good] * QUESTIONS
    assert len({check.question for check in answers}) == QUESTIONS
    without = checks(methods, area, has_target=False, **parts)
    assert len(without) == QUESTIONS - 1  # a bundle without a target has no negatives


def test_a_module_that_learnt_nothing_is_told_apart() -> None:
    """The check's figure, paired by image, of masks that are better than others, or not."""
    random = np.random.default_rng(0)
    truth = np.zeros((12, 32, 32), np.bool_)
    truth[:, 8:16, 8:16] = True
    of = Compared(images=np.zeros((12, 1, 32, 32), np.float32), truth=truth, probability=None)

    def columns(share: float) -> dict[str, np.ndarray]:
        masks = random.random((12, 32, 32), np.float32) + share * truth
        maps = Attributed(by_row=dict(enumerate(masks.astype(np.float32))))
        return scores(of, maps, is_mask=True)

    for share, passed in ((5.0, True), (0.0, False)):
        both = {NEMT: columns(share), SHUFFLED: columns(0.0)}
        table = methods_table(both, Patients(tuple(str(i) for i in range(12)), 200))
        answers = checks({key: result(row) for key, row in table.items()}, MaskArea())
        by_question = {check.question: check.passed for check in answers}
        assert by_question["has the explanation module learnt where to look?"] is passed
