"""What an evaluation amounts to: a few yes-or-no questions, each with the figure to it."""

from typing import Any

from ..markdown import show
from .methods import NEMT, SHUFFLED
from .model_dependence import SURVIVES

Check = dict[str, Any]
QUESTIONS = 7
"""How many there are; the others were not measured, or the data cannot answer them."""
ANSWERS = "does it answer for every image?"
"""Asked of every evaluation beside these, and told only where it fails."""
STABLE = 0.5
"""Overlap (IoU) of a segment with itself after a change that ought to change nothing."""


def checks(summary: dict[str, Any]) -> list[Check]:
    """Each check as `question`, `passed` and `figure`, in words; those that were measured.

    A mask that fails one is not to be trusted, however well it does in a table.
    """
    own = summary["methods"][NEMT]
    found: list[Check] = []

    def add(question: str, passed: bool, figure: str) -> None:
        found.append({"question": question, "passed": bool(passed), "figure": figure})

    if "truth_share" in summary and "relevance_mass" in own:
        mass, chance = own["relevance_mass"], summary["truth_share"]["mean"]
        add(
            "does it lie where the ground truth is, more than chance does?",
            mass["lo"] > chance,
            f"relevance mass {show(mass)}; chance {chance:.3f}",
        )
    if "relevance_mass_less_others" in own:
        less = own["relevance_mass_less_others"]
        add(
            "is it about this image, not about such images?",
            less["lo"] > 0,
            f"relevance mass, own less others {show(less)}",
        )
    shuffled = summary["methods"].get(SHUFFLED, {}).get("nemt_less", {})
    if "relevance_mass" in shuffled:
        less = shuffled["relevance_mass"]
        add(
            "has the explanation module learnt where to look?",
            less["lo"] > 0,
            f"relevance mass less that with shuffled weights {show(less)}",
        )
    if "faithfulness" in own:
        add(
            "does the answer fall where it says?",
            own["faithfulness"]["lo"] > 0,
            f"faithfulness {show(own['faithfulness'])}",
        )
    area = summary["mask_area"].get("negatives_over_positives")
    if area and "auc" in summary:
        add(
            "is it smaller where the target is absent?",
            area["hi"] < 1,
            f"mask area without the target over with it {show(area)}",
        )
    if "randomisation" in summary:
        whole = summary["randomisation"][NEMT]["fully_randomised"]
        add(
            "does it depend on the model?",
            not summary["randomisation"][NEMT]["survives"],
            f"rank correlation with the randomised model's {show(whole)}; {SURVIVES:g} fails",
        )
    if "stability" in summary:
        rows = summary["stability"][NEMT]
        worst = min(rows, key=lambda name: rows[name]["iou"]["mean"])
        add(
            "does it hold still?",
            rows[worst]["iou"]["mean"] >= STABLE,
            f"least overlap {show(rows[worst]['iou'])}, {worst}; below {STABLE:g} fails",
        )
    if own["failed"]:
        add(ANSWERS, False, f"{own['failed']} images failed")
    return found


def verdict(found: list[Check]) -> str:
    """The summary line of a report."""
    failed = [check for check in found if not check["passed"]]
    line = f"{'FAIL' if failed else 'PASS'}: {len(found) - len(failed)} of {len(found)} checks pass"
    if lacking := QUESTIONS - sum(check["question"] != ANSWERS for check in found):
        line += f", {lacking} could not be asked"
    return ". ".join([line, *(f"{c['question'].capitalize()} No: {c['figure']}" for c in failed)])
