"""An evaluation written down: report.html, report.md, metrics.csv, summary.json and pictures."""

import base64
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt

from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle

from ..evaluation.checks import verdict
from ..evaluation.maps import SLOW, SUBSET, seeded_subset
from ..evaluation.methods import NEMT
from ..evaluation.plan import Evaluation
from ..markdown import show, table
from ..statistics import mean
from . import tables
from .charts import draw_bars, draw_curves, draw_masks, draw_panels, draw_randomisation

PANELS = 6
"""Images in the panel of all methods."""
WORST = 10

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1.5em;
       color: #1a1a1a; background: white; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: left; vertical-align: top; }
th { background: #f2f2f2; } img { max-width: 100%; border: 1px solid #ddd; }
tr:nth-child(even) td { background: #fafafa; } h2 { margin-top: 2em; }
"""


def write_report(out: Path, bundle: Bundle, found: Evaluation, *, command: str) -> None:
    """Writes all files of a report to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    _draw(out, bundle, found)
    _write_csv(out / "metrics.csv", found)
    summary = found.summary | {"verdict": verdict(found.summary["checks"])}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = report(bundle, found.summary, command=command)
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.html").write_text(to_html(text, out), encoding="utf-8")


def to_html(text: str, folder: Path) -> str:
    """A Markdown text as one HTML file; the pictures of `folder` that it shows are in it."""
    body = MarkdownIt("commonmark").enable("table").render(text)

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([\w.-]+\.png)"', inline, body)
    title = text.splitlines()[0].lstrip("# ")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def report(bundle: Bundle, summary: dict[str, Any], *, command: str) -> str:
    """report.md."""
    manifest, of = bundle.manifest, summary["evaluated"]
    sections = [
        f"# Evaluation of {manifest.name} {manifest.version}",
        f"**{verdict(summary['checks'])}**",
        f"{manifest.target}, explained for {of['images']} images of the {of['split']} split of "
        f"{', '.join(of['sources'])} ({of['positives']} with the target, "
        f"{of['with_ground_truth']} of them with ground truth, {of['patients']} patients). "
        f"Bundle `{bundle.digest[:12]}`, on {of['device']}, nemt-dicom "
        f"{of['code']['version']} at `{of['code']['commit'][:12]}`. `{command}`",
        "\n".join(f"- {note}" for note in of["notes"]),
        "Every interval is a 95 % bootstrap interval over patients (2000 resamples). **Research "
        "only.** The ground truth says where people saw the finding, not what the network uses.",
        f"## In short\n\n{tables.checks_table(summary)}",
        f"## The classifier and what is drawn\n\n{tables.figures_table(summary)}",
        _methods(summary),
        _images(of),
    ]
    if "subgroups" in summary:
        sections += _further(summary)
    sections.append(f"## Methods\n\n{tables.methods_list(summary)}")
    metrics = (f"- {name}: {text}" for name, text in summary["metrics"].items())
    sections.append("## Metrics\n\n" + "\n".join(metrics))
    return "\n\n".join(section for section in sections if section) + "\n"


def _methods(summary: dict[str, Any]) -> str:
    share = summary.get("truth_share")
    truth = (
        f"The ground truth covers {show(share)} of the image, which is chance for mass and rank. "
        if share
        else "The data have no ground truth of where to look: mass and rank are not measured. "
    )
    slow = (
        f"Without a GPU a method that takes more than {SLOW:g} s an image was asked for {SUBSET} "
        "images only, chosen by a seed; its row says so, and differences are paired on them. "
    )
    return (
        f"## Methods compared\n\n{truth}Each map is min-max normalised; all explain the same "
        "output of the same classifier. Mass: share of the map inside the ground truth. Rank: "
        "share of the k highest pixels inside, k its area. Complexity, sparseness and faithfulness "
        f"are Quantus'. {slow if not summary['evaluated']['device'].startswith('NVIDIA') else ''}"
        f"\n\n{tables.paper_table(summary)}\n\n![bars](bars.png)\n\n"
        "### About this image, or about such images?\n\n*Own less others*: less the score of the "
        "other images' maps on the same ground truth, 0 for a map that ignores the image. "
        f"Differences are paired by image.\n\n{tables.differences_table(summary)}\n\n"
        f"### Time\n\n{tables.time_table(summary)}"
    )


def _images(of: dict[str, Any]) -> str:
    worst = "relevance mass" if of["with_ground_truth"] else "faithfulness"
    return (
        "## Images\n\nRows: images chosen by a seed. The ground truth is outlined in blue.\n\n"
        f"![panels](panels.png)\n\n### The {WORST} worst masks, by {worst}\n\n"
        "White: the segment at the mask threshold. Blue: ground truth.\n\n![worst](worst.png)"
    )


def _further(summary: dict[str, Any]) -> list[str]:
    sections = []
    if any("curves" in row for row in summary["methods"].values()):
        sections.append(
            "## Removal\n\nDeletion and insertion: area under p as the highest pixels are removed, "
            "or alone shown, black or blurred. ROAD: removed pixels are filled in from their "
            f"neighbours; of {SUBSET} images at most.\n\n{tables.further_table(summary)}\n\n"
            f"![curves](curves.png)\n\n{tables.faithfulness_table(summary)}"
        )
    else:
        sections.append(f"## Further figures\n\n{tables.further_table(summary)}")
    layers = "; ".join(summary["randomisation"]["layers"])
    area = summary["randomisation"][NEMT]["area"]
    sections += [
        "## Does it depend on the model?\n\nThe target model's layers get random weights. A map "
        "that stays as it was (rank correlation 0.5 or more) explains the image, not the model. "
        f"Groups, from the output to the input: {layers}.\n\n"
        f"{tables.randomisation_table(summary)}\n\n![randomisation](randomisation.png)\n\n"
        f"The explanation module marks {area['trained']:.3f} of the image on the trained model; "
        "as more of it is randomised, from the output to the input, "
        f"{', '.join(f'{value:.3f}' for value in area['cascading'])}."
        + "\n\n### Input invariance\n\nA constant is added to the image and taken away by the "
        f"model's first step.\n\n{tables.invariance_table(summary)}",
        f"## Does it hold still?\n\n{tables.stability_table(summary)}",
        "## Is it silent where there is nothing to say?\n\n" + tables.silence_table(summary),
        f"## Subgroups\n\n{tables.subgroup_table(summary)}",
    ]
    return sections


def _draw(out: Path, bundle: Bundle, found: Evaluation) -> None:
    summary, compared = found.summary, found.compared
    draw_bars(out / "bars.png", summary)
    chosen = seeded_subset(len(found.rows))[:PANELS]
    draw_panels(
        out / "panels.png",
        compared.images[chosen],
        None if compared.truth is None else compared.truth[chosen],
        [
            {key: a.found[row] for key, a in found.attributed.items() if row in a.found}
            for row in chosen.tolist()
        ],
        {key: row["name"] for key, row in summary["methods"].items()},
        [_title(found, row) for row in chosen.tolist()],
    )
    columns, ours = found.columns[NEMT], found.attributed[NEMT]
    by = columns.get("relevance_mass", columns.get("faithfulness", columns["complexity"]))
    worst = [row for row in np.argsort(by).tolist() if row in ours.found][:WORST]
    draw_masks(
        out / "worst.png",
        compared.images[worst],
        np.stack([ours.found[row] for row in worst]),
        [f"{_title(found, row)}, {by[row]:.3f}" for row in worst],
        bundle.manifest.mask_threshold,
        None if compared.truth is None else compared.truth[worst],
    )
    if any("curves" in row for row in summary["methods"].values()):
        draw_curves(out / "curves.png", summary)
    if "randomisation" in summary:
        draw_randomisation(out / "randomisation.png", summary)


def _title(found: Evaluation, row: int) -> str:
    """The row of an image in metrics.csv, and its p."""
    answer = found.answer[found.rows[row]]
    return f"image {row}" + ("" if answer.ndim else f", p {answer:.2f}")


def _write_csv(path: Path, found: Evaluation) -> None:
    """A row an image and method."""
    names = list(dict.fromkeys(name for own in found.columns.values() for name in own))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "file", "source", "method", "failed", *names])
        for key, own in found.columns.items():
            attributed = found.attributed[key]
            for row in sorted({*attributed.found, *attributed.failed}):
                case = found.examples.cases[found.rows[row]]
                values = [
                    f"{own[n][row]:.6g}" if n in own and np.isfinite(own[n][row]) else ""
                    for n in names
                ]
                failed = attributed.failed.get(row, "")
                writer.writerow([row, case.path.name, case.source, key, failed, *values])


def write_comparison(
    out: Path, first: tuple[Bundle, Evaluation], second: tuple[Bundle, Evaluation], *, command: str
) -> str:
    """compare.md, compare.html and compare.json: two bundles' modules, paired by image.

    Raises `DataError` where they were not measured on the same images.
    """
    (bundle_a, a), (bundle_b, b) = first, second
    files = [[e.examples.cases[i].path for i in e.rows] for e in (a, b)]
    if files[0] != files[1]:
        raise DataError("the two bundles are not measured on the same images")
    shared = [name for name in a.columns[NEMT] if name in b.columns[NEMT]]
    rows, figures = [], {}
    for name in shared:
        own = [mean(e.columns[NEMT][name], a.patients) for e in (a, b)]
        less = mean(b.columns[NEMT][name] - a.columns[NEMT][name], a.patients)
        figures[name] = {"a": own[0], "b": own[1], "b_less_a": less}
        rows.append([name.replace("_", " "), *(show(f) for f in (*own, less))])
    heads = ["of the explanation module", "A", "B", "B less A"]
    names = [
        f"{x.manifest.name} {x.manifest.version} `{x.digest[:12]}`" for x in (bundle_a, bundle_b)
    ]
    text = "\n\n".join(
        [
            "# Comparison of two bundles",
            f"A: {names[0]}. B: {names[1]}. `{command}`",
            f"{len(a.rows)} images, 95 % bootstrap intervals over patients, differences paired by "
            "image. A difference whose interval has 0 in it is none.",
            table(heads, rows),
            f"## A\n\n{tables.figures_table(a.summary)}\n\n{tables.paper_table(a.summary)}",
            f"## B\n\n{tables.figures_table(b.summary)}\n\n{tables.paper_table(b.summary)}",
        ]
    )
    content = {"a": a.summary, "b": b.summary, "methods": figures}
    (out / "compare.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "compare.md").write_text(text + "\n", encoding="utf-8")
    (out / "compare.html").write_text(to_html(text, out), encoding="utf-8")
    return text
