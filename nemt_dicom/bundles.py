"""The tables that `nemt-dicom bundle show` prints."""

from rich.table import Table

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Evaluation, Figure

SHOWN = ("relevance_rank", "relevance_mass", "complexity", "sparseness", "faithfulness")
"""Metrics of the explanation module in this table; the model card has all."""


def overview(bundle: Bundle) -> Table:
    """Identity, target and thresholds of a bundle."""
    m = bundle.manifest
    table = Table(title=f"{m.name} {m.version}", title_justify="left", show_header=False)
    for key, value in (
        ("target", m.target),
        ("trained on", ", ".join(m.source_kinds)),
        ("decision_threshold", f"{m.decision_threshold:.4f}  acts on the probability p"),
        ("mask_threshold", f"{m.mask_threshold:.4f}  makes the mask a segment"),
        ("evidence_margin", f"{m.evidence_margin:.4f}  p must fall by more"),
        ("fill", m.fill),
        ("backbone", bundle.architecture.backbone),
        (
            "model digest",
            f"{bundle.model_digest}\nin every result; figures do not change it",
        ),
        ("folder digest", f"{bundle.digest}\nof all files, the figures among them"),
        ("folder", str(bundle.folder)),
    ):
        table.add_row(key, value)
    return table


def figures(evaluation: Evaluation | None) -> Table:
    """The main figures with their 95 % intervals and their numbers of images."""
    table = Table("figure", "value (95 % interval)", "images", title_justify="left")
    if evaluation is None:
        table.title = "Never evaluated"
        table.add_row("none", "nemt-eval --bundle DIR --data DIR --out DIR --into-bundle", "")
        return table
    scope = evaluation.scope
    table.title = (
        f"Evaluated on the {scope.split} split of {', '.join(scope.sources)}: "
        f"{scope.images} images of {scope.patients} patients"
    )
    for name, figure in _named(evaluation):
        if figure is not None:
            interval = f"{figure.mean:.3f} ({figure.lo:.3f} to {figure.hi:.3f})"
            table.add_row(name, interval, str(figure.n))
    return table


def _named(evaluation: Evaluation) -> list[tuple[str, Figure | None]]:
    decisions, drawn = evaluation.decisions, evaluation.drawn
    named = [(f"AUC, {source}", figure) for source, figure in evaluation.auc.items()]
    rows: list[tuple[str, Figure | None]] = [*named]
    if decisions is not None:
        rows.append(("sensitivity", decisions.sensitivity))
        rows.append(("specificity", decisions.specificity))
    if drawn is not None:
        rows.append(("with the target: segment drawn", drawn.positives))
        rows.append(("without the target: segment drawn", drawn.negatives))
    scores = evaluation.module.scores
    rows += [(name.replace("_", " "), getattr(scores, name)) for name in SHOWN]
    return rows


def answers(evaluation: Evaluation) -> Table:
    """The checks: each question with its answer and the figure behind it."""
    table = Table("check", "answer", "figure", title="Checks", title_justify="left")
    for check in evaluation.checks:
        table.add_row(check.question, "yes" if check.passed else "NO", check.figure)
    return table
