"""An evaluation written down: report.html, report.md, metrics.csv, summary.json and pictures."""

import base64
import csv
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt

from nemt_dicom.files import write_whole
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Evaluation

from ..evaluation.checks import verdict
from ..evaluation.model_dependence import SURVIVES
from ..evaluation.results import Measured
from ..evaluation.scores import INTERVAL, SLOW_METHODS
from ..evaluation.settings import NEMT
from ..evaluation.subset import subset
from . import tables
from .charts import draw_bars, draw_curves, draw_masks, draw_panels, draw_randomisation
from .render import render

PANELS = 6
"""Images in the panel of all methods."""
WORST = 10
"""Images in the panel of the worst masks."""
WORST_BY = {"relevance_mass": 1, "faithfulness": 1, "complexity": -1}
"""Metrics that tell the worst masks; the first one that is measured does. -1: higher is worse."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1.5em;
       color: #1a1a1a; background: white; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top; }
th { background: #f2f2f2; } img { max-width: 100%; border: 1px solid #ddd; }
tr:nth-child(even) td { background: #fafafa; } h2 { margin-top: 2em; }
"""


def write_report(out: Path, bundle: Bundle, measured: Measured, *, command: str) -> None:
    """Writes all files of a report to `out`, each whole."""
    out.mkdir(parents=True, exist_ok=True)
    _draw(out, bundle, measured)
    write_whole(out / "metrics.csv", _csv(measured))
    results = measured.results
    summary = results.model_dump_json(exclude_none=True, indent=1)
    write_whole(out / "summary.json", summary + "\n")
    text = report(bundle, results, command=command, skipped=measured.examples.skipped)
    write_whole(out / "report.md", text)
    title = f"Evaluation of {bundle.manifest.name} {bundle.manifest.version}"
    write_whole(out / "report.html", to_html(text, title, out))


def report(
    bundle: Bundle, evaluation: Evaluation, *, command: str, skipped: Sequence[str] = ()
) -> str:
    """report.md.

    command: the command line that made it.
    skipped: the images that could not be read, each as "name: reason".
    """
    randomisation, methods = evaluation.randomisation, evaluation.methods.values()
    by = _worst_by(evaluation)
    return render(
        "report",
        manifest=bundle.manifest,
        digest=bundle.model_digest,
        e=evaluation,
        scope=evaluation.scope,
        verdict=verdict(evaluation.checks),
        command=command,
        tables=tables,
        interval=INTERVAL,
        slow_methods=SLOW_METHODS,
        skipped=skipped,
        worst=WORST,
        worst_by=by and by.replace("_", " "),
        some_are_slow=len({method.asked for method in methods}) > 1,
        survives=SURVIVES,
        area=randomisation.methods[NEMT].area if randomisation else None,
        has_curves=any(method.curves for method in methods),
    )


def to_html(text: str, title: str, folder: Path) -> str:
    """A Markdown text as one HTML file; the pictures of `folder` that it shows are in it.

    HTML in the text is shown, not obeyed.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="(\w+\.png)"', inline, body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _draw(out: Path, bundle: Bundle, measured: Measured) -> None:
    results, compared = measured.results, measured.compared
    draw_bars(out / "bars.png", results)
    chosen = subset(len(measured.rows), compared.settings.subset)[:PANELS]
    draw_panels(
        out / "panels.png",
        compared.images[chosen],
        None if compared.truth is None else compared.truth[chosen],
        [
            {k: maps.by_row[row] for k, maps in measured.attributed.items() if row in maps.by_row}
            for row in chosen.tolist()
        ],
        {key: method.name for key, method in results.methods.items()},
        [_title(measured, row) for row in chosen.tolist()],
    )
    name, masks = _worst_by(results), measured.attributed[NEMT].by_row
    if name is not None:
        by = measured.columns[NEMT][name]
        worst = [row for row in np.argsort(WORST_BY[name] * by).tolist() if row in masks][:WORST]
        draw_masks(
            out / "worst.png",
            compared.images[worst],
            np.stack([masks[row] for row in worst]),
            [f"{_title(measured, row)}, {by[row]:.3f}" for row in worst],
            bundle.manifest.mask_threshold,
            None if compared.truth is None else compared.truth[worst],
        )
    if any(method.curves for method in results.methods.values()):
        draw_curves(out / "curves.png", results)
    if results.randomisation is not None:
        draw_randomisation(out / "randomisation.png", results.randomisation)


def _worst_by(evaluation: Evaluation) -> str | None:
    """The metric that tells the worst masks; None if the module has no mask at all."""
    return next((name for name in WORST_BY if tables.score(evaluation.module.scores, name)), None)


def _title(measured: Measured, row: int) -> str:
    """The row of an image in metrics.csv, and its p."""
    answer = measured.answer[measured.rows[row]]
    return f"image {row}" + ("" if answer.ndim else f", p {answer:.2f}")


def _csv(measured: Measured) -> str:
    """A row an image and method."""
    names = list(dict.fromkeys(name for scores in measured.columns.values() for name in scores))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "file", "source", "method", "failed", *names])
    for key, scores in measured.columns.items():
        attributed = measured.attributed[key]
        for row in sorted({*attributed.by_row, *attributed.failed}):
            case = measured.examples.cases[measured.rows[row]]
            values = [
                f"{scores[n][row]:.6g}" if n in scores and np.isfinite(scores[n][row]) else ""
                for n in names
            ]
            failed = attributed.failed.get(row, "")
            writer.writerow([row, case.path.name, case.source, key, failed, *values])
    return text.getvalue()
