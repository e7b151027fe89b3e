"""Tables of an evaluation: their order, and what they say of failures and of fewer images."""

import pytest

from nemt_dicom.model.evaluation import Scores
from tests.trainer.report.evaluation_kit import SCORES, about, evaluation, method
from trainer.evaluation.settings import NEMT
from trainer.report import tables

EVERY = [name for name in vars(tables) if name.endswith(("_table", "_list")) and name[0] != "_"]


def test_the_papers_columns_and_the_order_of_methods() -> None:
    methods = evaluation().methods
    results = evaluation(methods=dict(sorted(methods.items())))  # as JSON may sort them
    first, second = tables.paper_table(results), tables.differences_table(results)
    heads = [text.strip() for text in first.splitlines()[0].strip("|").split("|")]
    assert [text.split(" ")[0] for text in heads] == [
        "method", "relevance", "relevance", "complexity", "sparseness", "faithfulness", "s/image",
    ]  # fmt: skip
    for text in (first, second):
        names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
        assert names == ["explanation module", "GradCAM++", "mean of the training boxes"]
    assert "2.00 (1.90 to 2.10)" in second.splitlines()[3]
    assert tables.methods_list(results).count("as it is") == 3


def test_fewer_images_and_failures_are_told() -> None:
    some = SCORES.model_copy(update={"relevance_mass": about(0.5, n=3), "faithfulness": None})
    failing = {"scores": some, "failed": 1, "failures": ("RuntimeError: no",)}
    slow = method("RISE", asked=2, scores=Scores(), seconds=None)
    results = evaluation(
        methods={NEMT: method("explanation module"), "odd": method("odd", **failing), "rise": slow}
    )
    lines = {line.split("|")[1].strip(): line for line in tables.paper_table(results).splitlines()}
    assert "n = 3" in lines["odd, failed on 1"]
    assert "not defined" in lines["odd, failed on 1"]
    assert lines["RISE, 2 of 4 images"].count("not defined") == 6
    assert "RuntimeError: no" in tables.methods_list(results)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("table", "splits_table")])
def test_names_from_elsewhere_are_escaped_in_every_table(name: str) -> None:
    hostile = "<b>x</b> | [y](z)"
    results = evaluation()
    renamed = {key: m.model_copy(update={"name": hostile}) for key, m in results.methods.items()}
    text = getattr(tables, name)(results.model_copy(update={"methods": renamed}))
    assert "<b>" not in text
    assert "[y](z)" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1
