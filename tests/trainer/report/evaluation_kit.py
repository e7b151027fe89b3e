"""An evaluation with every part, made of numbers and not measured."""

from typing import Any

from nemt_dicom.model.evaluation import (
    Answers,
    Decisions,
    Drawn,
    Evaluation,
    Figure,
    MaskArea,
    MethodResult,
    Randomisation,
    RandomisedArea,
    RandomisedMethod,
    Scope,
    Scores,
    Seconds,
    Stability,
    Subgroup,
)
from tests.trainer.bundle_kit import CODE
from trainer.evaluation.checks import checks
from trainer.evaluation.scores import describe_metrics
from trainer.evaluation.settings import NEMT, EvaluationSettings


def about(mean: float, n: int = 4) -> Figure:
    """A figure and a narrow interval."""
    return Figure(mean=mean, lo=mean - 0.1, hi=mean + 0.1, n=n)


SCORES = Scores(**{name: about(0.5) for name in set(Scores.model_fields) - {"area"}})


def method(name: str, **changes: Any) -> MethodResult:
    """A method's figures, with changes."""
    values: dict[str, Any] = {
        "name": name,
        "library": "nemt-dicom",
        "settings": "as it is",
        "asked": 4,
        "failed": 0,
        "failures": (),
        "scores": SCORES,
        "seconds": Seconds(single=about(0.2), batch=about(0.1)),
        "curves": {"deletion_black": (1.0, 0.5, 0.1)},
    }
    return MethodResult(**{**values, **changes})


def evaluation(**changes: Any) -> Evaluation:
    """Everything that can be measured, with changes."""
    versus = {"nemt_less": SCORES, "nemt_over": Scores(relevance_mass=about(2.0))}
    methods = {
        NEMT: method("explanation module"),
        "gradcam++": method("GradCAM++", **versus),
        "mean_of_boxes": method("mean of the training boxes", **versus),
    }
    area = MaskArea(positives=about(0.3), negatives=about(0.1), negatives_over_positives=about(0.3))
    randomised = RandomisedMethod(
        name="explanation module",
        cascading=(0.5, None),
        independent=(0.4, 0.3),
        fully_randomised=about(0.2),
        survives=False,
        area=RandomisedArea(trained=0.3, cascading=(0.2, 0.1), independent=(0.2, 0.2)),
    )
    values: dict[str, Any] = {
        "scope": Scope(
            split="test", images=8, positives=4, with_ground_truth=4, unreadable=0, patients=8,
            sources=("RSNA",), fingerprint="f" * 64, notes=(), thorough=True, device="CPU",
            code=CODE,
        ),
        "checks": checks(methods, area, truth_share=about(0.2), has_target=True),
        "metrics": describe_metrics(64, EvaluationSettings(resamples=77)),
        "classifier": Seconds(single=about(0.1)),
        "mask_area": area,
        "methods": methods,
        "truth_share": about(0.2),
        "auc": {"all": about(0.8)},
        "decisions": Decisions(sensitivity=about(0.9), specificity=about(0.7)),
        "drawn": Drawn(positives=about(0.6), negatives=about(0.2)),
        "subgroups": {"view": {"PA": Subgroup(images=4, methods={NEMT: SCORES})}},
        "randomisation": Randomisation(layers=("a to b", "c to d"), methods={NEMT: randomised}),
        "input_invariance": {NEMT: about(1.0)},
        "stability": {NEMT: {"noise": Stability(iou=about(0.7))}},
        "silence": {"with the target": Answers(area=about(0.3))},
    }  # fmt: skip
    return Evaluation(**{**values, **changes})
