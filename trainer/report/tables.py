"""The figures of an evaluation as Markdown tables: for report, model card and terminal."""

from collections.abc import Iterable, Mapping, Sequence

from nemt_dicom.model.evaluation import (
    Decisions,
    Drawn,
    Evaluation,
    Figure,
    MethodResult,
    Scores,
    Seconds,
)
from nemt_dicom.model.manifest import SplitCounts

from ..evaluation.methods import METHODS
from ..evaluation.settings import NEMT
from ..markdown import Markdown, escape, show, table

PAPER = {
    "relevance_rank": "relevance rank ↑",
    "relevance_mass": "relevance mass ↑",
    "complexity": "complexity ↓",
    "sparseness": "sparseness ↑",
    "faithfulness": "faithfulness ↑",
}
"""The paper's table, in its order; seconds follow."""
SECONDS = "s/image ↓"
FURTHER = {
    "pointing_game": "pointing game ↑",
    "iou": "IoU at the mask threshold ↑",
    "deletion_black": "deletion, black ↓",
    "deletion_blur": "deletion, blurred ↓",
    "insertion_black": "insertion, black ↑",
    "insertion_blur": "insertion, blurred ↑",
    "road": "ROAD ↑",
}
SUBGROUP_METHODS = (NEMT, "gradcam++", "mean_of_boxes")


def score(scores: Scores | None, name: str) -> Figure | None:
    """A metric by its name; None if there are no scores."""
    value: Figure | None = None if scores is None else getattr(scores, name)
    return value


def splits_table(splits: Mapping[str, SplitCounts]) -> Markdown:
    """Counts of each split, by name."""
    rows = [
        [name, str(row.images), str(row.positives), str(row.patients)]
        for name, row in splits.items()
    ]
    return table(["split", "images", "positives", "patients"], rows)


def ordered(keys: Iterable[str]) -> list[str]:
    """Methods in the order of the registry, others after them: JSON may sort its keys."""
    known = list(METHODS)
    return sorted(keys, key=lambda key: (known.index(key) if key in known else len(known), key))


def _methods(evaluation: Evaluation) -> list[MethodResult]:
    return [evaluation.methods[key] for key in ordered(evaluation.methods)]


def figures_table(evaluation: Evaluation) -> Markdown:
    """The figures that are not about where a map lies."""
    area = evaluation.mask_area
    decisions, drawn = evaluation.decisions or Decisions(), evaluation.drawn or Drawn()
    named: list[tuple[str, Figure | None]] = [
        *((f"AUC, {name}", value) for name, value in evaluation.auc.items()),
        ("sensitivity at the decision threshold", decisions.sensitivity),
        ("specificity at the decision threshold", decisions.specificity),
        ("soft mask's mean area on positives, before any threshold", area.positives),
        ("soft mask's mean area on negatives, before any threshold", area.negatives),
        ("the latter over the former", area.negatives_over_positives),
        ("share of images with ground truth that get a segment", drawn.boxed),
        ("share of positives that get a segment", drawn.positives),
        ("share of negatives that get a segment", drawn.negatives),
    ]
    rows = [[text, show(value), str(value.n)] for text, value in named if value is not None]
    seconds = evaluation.classifier.single
    text = "seconds an image, the classifier's forward pass alone"
    rows.append([text, show(seconds, 4), str(seconds.n)])
    return table(["figure", "value (95 % interval)", "images"], rows)


def paper_table(evaluation: Evaluation) -> Markdown:
    """The paper's table: every method's figures with their intervals.

    A figure of fewer images than there are says how many.
    """
    most = _most(evaluation)
    rows = [
        [
            _name(method, most),
            *(_cell(score(method.scores, name), most) for name in PAPER),
            "not defined" if method.seconds is None else show(method.seconds.single, 4),
        ]
        for method in _methods(evaluation)
    ]
    return table(["method", *PAPER.values(), SECONDS], rows)


def further_table(evaluation: Evaluation) -> Markdown:
    """What the paper does not measure: removal curves, pointing game, overlap, ROAD."""
    methods, most = _methods(evaluation), _most(evaluation)
    names = [name for name in FURTHER if any(score(m.scores, name) for m in methods)]
    rows = [
        [_name(m, most), *(_cell(score(m.scores, name), most) for name in names)] for m in methods
    ]
    return table(["method", *(FURTHER[name] for name in names)], rows)


def _most(evaluation: Evaluation) -> int:
    return max(method.asked for method in evaluation.methods.values())


def _name(method: MethodResult, most: int) -> str:
    name = method.name
    if method.asked < most:
        name += f", {method.asked} of {most} images"
    if method.failed:
        name += f", failed on {method.failed}"
    return name


def _cell(figure: Figure | None, most: int) -> str:
    if figure is None:
        return "not defined"
    return f"{show(figure)}, n = {figure.n}" if figure.n < most else show(figure)


def differences_table(evaluation: Evaluation) -> Markdown:
    """Own less others of every method, and the explanation module against each other method."""
    rows = []
    for method in _methods(evaluation):
        cells = [method.name]
        for name in ("relevance_rank", "relevance_mass"):
            less = f"{name}_less_others"
            cells += [
                show(score(method.scores, less)),
                show(score(method.nemt_less, less)),
                show(score(method.nemt_over, name), 2),
            ]
        rows.append(cells)
    ours = evaluation.module.name
    heads = ["method"]
    for name in ("rank", "mass"):
        heads += [f"{name}, own less others", f"{ours} less this", f"{name}: {ours} over this"]
    return table(heads, rows)


def faithfulness_table(evaluation: Evaluation) -> Markdown:
    """The explanation module's measures of faithfulness less each other method's, paired."""
    names = ("faithfulness", "deletion_black", "deletion_blur", "insertion_black",
             "insertion_blur", "road")  # fmt: skip
    rows = [
        [method.name, *(show(score(method.nemt_less, name)) for name in names)]
        for method in _methods(evaluation)
        if method.nemt_less is not None
    ]
    return table(["explanation module less", *(name.replace("_", ", ") for name in names)], rows)


def time_table(evaluation: Evaluation) -> Markdown:
    """Seconds an image, one at a time and in a batch, and how much longer than the module."""
    ours = evaluation.module.seconds
    rows = [_times("the classifier's forward pass", evaluation.classifier, ours)]
    rows += [_times(method.name, method.seconds, ours) for method in _methods(evaluation)]
    heads = ["method", "s/image, one at a time", "times the module's", "s/image, in a batch",
             "times the module's"]  # fmt: skip
    return table(heads, rows)


def _times(name: str, seconds: Seconds | None, ours: Seconds | None) -> list[str]:
    cells, none = [name], show(None)
    for single in (True, False):
        value, base = _seconds(seconds, single=single), _seconds(ours, single=single)
        cells.append(none if value is None else f"{value.mean:.3g}")
        cells.append(none if value is None or base is None else f"{value.mean / base.mean:.3g}")
    return cells


def _seconds(seconds: Seconds | None, *, single: bool) -> Figure | None:
    if seconds is None:
        return None
    return seconds.single if single else seconds.batch


def methods_list(evaluation: Evaluation) -> Markdown:
    """Which library computed each method's maps, and how; and what failed."""
    lines = []
    for method in _methods(evaluation):
        text = f"{method.name}: {method.library}; {method.settings}"
        lines.append(f"- {escape(text)}")
        if method.failed:
            reasons = escape("; ".join(method.failures))
            lines.append(f"  - failed on {method.failed} images: {reasons}")
    return Markdown("\n".join(lines))


def subgroup_table(evaluation: Evaluation) -> Markdown:
    """Mass and rank of the main methods by subgroup, and the classifier's AUC."""
    methods = [key for key in SUBGROUP_METHODS if key in evaluation.methods]
    rows = []
    for group, values in evaluation.subgroups.items():
        for value, subgroup in values.items():
            cells = [f"{group}: {value}", str(subgroup.images)]
            for key in methods:
                scores = subgroup.methods.get(key)
                cells += [
                    show(score(scores, "relevance_mass")),
                    show(score(scores, "relevance_rank")),
                ]
            auc = evaluation.auc_by_subgroup.get(group, {}).get(value)
            cells.append(show(auc) if auc is None else f"{show(auc)}, n = {auc.n}")
            rows.append(cells)
    heads = ["subgroup", "images"]
    for key in methods:
        name = evaluation.methods[key].name
        heads += [f"mass, {name}", f"rank, {name}"]
    return table([*heads, "AUC, all images"], rows)


def randomisation_table(evaluation: Evaluation) -> Markdown:
    """How like the maps stay when the target model is randomised."""
    methods = evaluation.randomisation.methods if evaluation.randomisation else {}
    rows = [
        [
            method.name,
            show(method.fully_randomised),
            Markdown("**FAILS: survives**") if method.survives else "no",
            _series(method.cascading),
            _series(method.independent),
        ]
        for method in (methods[key] for key in ordered(methods))
    ]
    heads = ["method", "rank correlation, wholly randomised", "survives?",
             "cascading, output to input", "independent, output to input"]  # fmt: skip
    return table(heads, rows)


def _series(values: Sequence[float | None]) -> Markdown:
    return Markdown(", ".join("-" if value is None else f"{value:.2f}" for value in values))


def invariance_table(evaluation: Evaluation) -> Markdown:
    """How like the maps stay when a shift is added to the input and taken away again."""
    figures = evaluation.input_invariance
    rows = [[evaluation.methods[key].name, show(figures[key])] for key in ordered(figures)]
    return table(["method", "rank correlation, 1 = invariant"], rows)


def stability_table(evaluation: Evaluation) -> Markdown:
    """Overlap of the segments, and change of mass and rank, under each change."""
    rows = [
        [
            evaluation.methods[key].name,
            change,
            show(row.iou),
            show(row.relevance_mass),
            show(row.relevance_rank),
        ]
        for key in ordered(evaluation.stability)
        for change, row in evaluation.stability[key].items()
    ]
    return table(
        ["method", "change", "IoU of the segments ↑", "change of mass ↓", "change of rank ↓"], rows
    )


def silence_table(evaluation: Evaluation) -> Markdown:
    """What is said of images with and without the target, and of images that show nothing."""
    rows = [
        [
            name,
            str(answers.area.n),
            show(answers.probability),
            show(answers.area),
            show(answers.drawn),
            show(answers.fall),
        ]
        for name, answers in evaluation.silence.items()
    ]
    heads = ["images", "n", "p", "mask's area", "share with a segment", "fall of p without it"]
    return table(heads, rows)


def checks_table(evaluation: Evaluation) -> Markdown:
    """The questions with their answers."""
    rows = [
        [check.question, "yes" if check.passed else Markdown("**NO**"), check.figure]
        for check in evaluation.checks
    ]
    return table(["question", "answer", "figure"], rows)
