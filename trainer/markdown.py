"""Figures and tables as Markdown, for reports, model cards and the terminal.

Text from data sets (file names, labels, headers) may hold anything. It is escaped unless it is a
`Markdown`, so that it can neither draw a table row nor bring HTML into a report.
"""

import re
from collections.abc import Sequence

from nemt_dicom.model.evaluation import Figure

_SPECIAL = re.compile(r"([\\`*\[\]<>|~])")
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # not within a word: there it marks nothing
_AT_THE_START = re.compile(r"^(#{1,6}|[-+=]+|\d+[.)])(?=\s|$)")
_BREAKS = re.compile(r"[\x00-\x20\x7f\x85\u2028\u2029]+")


class Markdown(str):
    """Text that is Markdown already: `escape` leaves it as it is."""

    __slots__ = ()


def escape(text: object) -> Markdown:
    """A value as Markdown that shows it as it is, on one line."""
    if isinstance(text, Markdown):
        return text
    line = _BREAKS.sub(" ", str(text))
    line = _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;"))
    line = _UNDERSCORE.sub(r"\\_", line)
    return Markdown(_AT_THE_START.sub(lambda m: f"{m[1][:-1]}\\{m[1][-1]}", line))


def code(text: object) -> Markdown:
    """A value as a code span."""
    line = _BREAKS.sub(" ", str(text))
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " * (longest > 0)
    return Markdown(f"{fence}{space}{line}{space}{fence}")


def show(figure: Figure | None, digits: int = 3) -> Markdown:
    """'0.812 (0.745 to 0.871)': a figure with its 95 % interval; '-' if there is none."""
    if figure is None:
        return Markdown("-")
    value, low, high = (f"{v:.{digits}f}" for v in (figure.mean, figure.lo, figure.hi))
    return Markdown(f"{value} ({low} to {high})")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markdown:
    """A Markdown table; cells are escaped."""
    lines = [heads, [Markdown("---")] * len(heads), *rows]
    return Markdown("\n".join(f"| {' | '.join(escape(cell) for cell in line)} |" for line in lines))


def bullets(lines: Sequence[str]) -> Markdown:
    """A Markdown list; its lines are escaped."""
    return Markdown("\n".join(f"- {escape(line)}" for line in lines))
