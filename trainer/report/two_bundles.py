"""Two bundles' explanation modules against each other: compare.md, compare.html, compare.json."""

import json
from dataclasses import dataclass
from pathlib import Path

from nemt_dicom.errors import DataError
from nemt_dicom.files import write_whole
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Figure

from ..evaluation.results import Measured
from ..evaluation.scores import INTERVAL
from ..evaluation.settings import NEMT
from ..markdown import Markdown, show, table
from ..statistics import mean
from . import tables
from .html import to_html
from .render import render


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A metric of both modules. b_less_a: the difference, paired by image."""

    a: Figure | None
    b: Figure | None
    b_less_a: Figure | None


def write_comparison(
    out: Path, first: tuple[Bundle, Measured], second: tuple[Bundle, Measured], *, command: str
) -> str:
    """Writes the three files, each whole, and returns the text.

    Raises `DataError` if the bundles were not measured on the same images.
    """
    (bundle_a, a), (bundle_b, b) = first, second
    files = [[m.examples.cases[i].path for i in m.rows] for m in (a, b)]
    if files[0] != files[1]:
        raise DataError("the two bundles are not measured on the same images")
    pairs = _pairs(a, b)
    text = render(
        "comparison",
        bundles=(bundle_a, bundle_b),
        results=(a.results, b.results),
        interval=a.results.metrics[INTERVAL],
        images=len(a.rows),
        command=command,
        pairs=_table(pairs),
        tables=tables,
    )
    content = {
        "a": a.results.model_dump(mode="json", exclude_none=True),
        "b": b.results.model_dump(mode="json", exclude_none=True),
        "methods": {
            name: {key: f and f.model_dump() for key, f in vars(pair).items()}
            for name, pair in pairs.items()
        },
    }
    write_whole(out / "compare.json", json.dumps(content, indent=1) + "\n")
    write_whole(out / "compare.md", text)
    write_whole(out / "compare.html", to_html(text, "Comparison of two bundles", out))
    return text


def _pairs(a: Measured, b: Measured) -> dict[str, Pair]:
    ours, theirs, patients = a.columns[NEMT], b.columns[NEMT], a.patients
    return {
        name: Pair(
            a=mean(ours[name], patients),
            b=mean(theirs[name], patients),
            b_less_a=mean(theirs[name] - ours[name], patients),
        )
        for name in ours
        if name in theirs
    }


def _table(pairs: dict[str, Pair]) -> Markdown:
    rows = [
        [name.replace("_", " "), show(pair.a), show(pair.b), show(pair.b_less_a)]
        for name, pair in pairs.items()
    ]
    return table(["of the explanation module", "A", "B", "B less A"], rows)
