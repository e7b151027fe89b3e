"""Figures and tables as Markdown, for reports, model cards and the terminal."""

from collections.abc import Mapping, Sequence


def show(figure: Mapping[str, float] | None, digits: int = 3) -> str:
    """'0.812 (0.745 to 0.871)': a figure with its 95 % interval; '-' if there is none."""
    if figure is None:
        return "-"
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("mean", "lo", "hi"))
    return f"{value} ({low} to {high})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
