"""What an evaluation amounts to: a few yes-or-no questions, each with its figure."""

from collections.abc import Iterator, Mapping, Sequence

from nemt_dicom.model.evaluation import Check, Figure, MaskArea, MethodResult, Randomisation
from nemt_dicom.model.evaluation import Stability as Stable

from ..markdown import show
from .model_dependence import SURVIVES
from .settings import NEMT, SHUFFLED

QUESTIONS = 7
"""The number of questions. A question that the data cannot answer is not asked."""
ANSWERS = "does it answer for every image?"
"""Asked of every evaluation as well, and told only if the answer is no."""
STABLE = 0.5
"""Least overlap (IoU) of a segment with itself after a change that should change nothing."""


def checks(
    methods: Mapping[str, MethodResult],
    mask_area: MaskArea,
    *,
    truth_share: Figure | None = None,
    has_target: bool = False,
    randomisation: Randomisation | None = None,
    stability: Mapping[str, Mapping[str, Stable]] | None = None,
) -> tuple[Check, ...]:
    """The questions that were measured, with their answers.

    A mask that fails one cannot be trusted, however good its other figures are. has_target: whether
    the bundle explains one fixed target, which an image may have or not.
    """
    return (
        *_about_place(methods, truth_share),
        *_about_answer(methods[NEMT], mask_area, has_target=has_target),
        *_about_model(randomisation),
        *_about_stability((stability or {}).get(NEMT)),
        *_about_failures(methods[NEMT]),
    )


def _about_place(
    methods: Mapping[str, MethodResult], truth_share: Figure | None
) -> Iterator[Check]:
    scores = methods[NEMT].scores
    mass, less = scores.relevance_mass, scores.relevance_mass_less_others
    if truth_share is not None and mass is not None:
        yield Check(
            question="does it lie where the ground truth is, more than chance does?",
            passed=mass.lo > truth_share.mean,
            figure=f"relevance mass {show(mass)}; chance {truth_share.mean:.3f}",
        )
    if less is not None:
        yield Check(
            question="is it about this image, not about such images?",
            passed=less.lo > 0,
            figure=f"relevance mass, own less others {show(less)}",
        )
    shuffled = methods.get(SHUFFLED)
    over = shuffled.nemt_less.relevance_mass if shuffled and shuffled.nemt_less else None
    if over is not None:
        yield Check(
            question="has the explanation module learnt where to look?",
            passed=over.lo > 0,
            figure=f"relevance mass less that with shuffled weights {show(over)}",
        )


def _about_answer(
    module: MethodResult, mask_area: MaskArea, *, has_target: bool
) -> Iterator[Check]:
    if (faithfulness := module.scores.faithfulness) is not None:
        yield Check(
            question="does the answer fall where it says?",
            passed=faithfulness.lo > 0,
            figure=f"faithfulness {show(faithfulness)}",
        )
    if has_target and (area := mask_area.negatives_over_positives) is not None:
        yield Check(
            question="is it smaller where the target is absent?",
            passed=area.hi < 1,
            figure=f"mask area without the target over with it {show(area)}",
        )


def _about_model(randomisation: Randomisation | None) -> Iterator[Check]:
    if randomisation is not None:
        module = randomisation.methods[NEMT]
        yield Check(
            question="does it depend on the model?",
            passed=not module.survives,
            figure=f"rank correlation with the randomised model's {show(module.fully_randomised)}; "
            f"{SURVIVES:g} fails",
        )


def _about_stability(changes: Mapping[str, Stable] | None) -> Iterator[Check]:
    if changes:
        worst = min(changes, key=lambda name: changes[name].iou.mean)
        overlap = changes[worst].iou
        yield Check(
            question="does it hold still?",
            passed=overlap.mean >= STABLE,
            figure=f"least overlap {show(overlap)}, {worst}; below {STABLE:g} fails",
        )


def _about_failures(module: MethodResult) -> Iterator[Check]:
    if module.failed:
        yield Check(question=ANSWERS, passed=False, figure=f"{module.failed} images failed")


def verdict(answers: Sequence[Check]) -> str:
    """The summary line of a report."""
    failed = [check for check in answers if not check.passed]
    passed = len(answers) - len(failed)
    line = f"{'FAIL' if failed else 'PASS'}: {passed} of {len(answers)} checks pass"
    if lacking := QUESTIONS - sum(check.question != ANSWERS for check in answers):
        line += f", {lacking} could not be asked"
    return ". ".join([line, *(f"{c.question.capitalize()} No: {c.figure}" for c in failed)])
