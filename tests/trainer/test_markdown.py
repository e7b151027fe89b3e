"""Text from data sets shows as it is: it draws no table row, no heading and no HTML."""

import pytest
from markdown_it import MarkdownIt

from nemt_dicom.model.evaluation import Figure
from trainer.markdown import Markdown, bullets, code, escape, show, table

HOSTILE = (
    "<script>alert(1)</script>", "a | b", "[x](http://example.org)", "![x](bars.png)", "*a* _b_",
    "`a` ``b``", "# head", "- item", "1. item", "two\nlines\r\nor \x00 \u2028three", "a & b &lt;",
    "back\\slash\\*", "~~x~~", "---", "===", "> quoted", "1.2.840.10008", "patient_0_a",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_shows_as_it_is_in_paragraph_list_and_table(text: str) -> None:
    from html import escape as html_escape

    shown = html_escape(" ".join(text.replace("\x00", " ").split()), quote=False)
    parser = MarkdownIt("commonmark").enable("table")
    assert parser.render(escape(text)) == f"<p>{shown}</p>\n"
    assert f"<li>{shown}</li>" in parser.render(bullets([text, "end"]))
    rows = parser.render(table(["head"], [[text], ["end"]]))
    assert f"<td>{shown}</td>" in rows
    assert rows.count("<tr>") == 3


@pytest.mark.parametrize("text", ["plain", "with ` one", "`` two ``", "--data 'x|y' <z>"])
def test_code_shows_as_it_is(text: str) -> None:
    from html import escape as html_escape

    assert f"<code>{html_escape(text, quote=False)}</code>" in MarkdownIt().render(code(text))


def test_markdown_is_not_escaped_twice() -> None:
    assert escape(Markdown("**NO**")) == "**NO**"
    assert escape(escape("a*b")) == "a\\*b"


def test_figures() -> None:
    figure = Figure(mean=0.8125, lo=0.745, hi=0.871, n=4)
    assert show(figure) == "0.812 (0.745 to 0.871)"
    assert show(figure, 1) == "0.8 (0.7 to 0.9)"
    assert show(None) == "-"
