"""The text of a report, and its page: data can say anything and do nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Scores
from tests.trainer.report.evaluation_kit import about, evaluation
from trainer.evaluation.settings import NEMT
from trainer.report.charts import draw_bars, draw_curves, draw_randomisation
from trainer.report.html import report, to_html

HOSTILE = "</h1><script>alert('x')</script> | *a* `b`"


def test_every_section_is_there(random_bundle: Bundle) -> None:
    text = report(random_bundle, evaluation(), command="nemt-eval --data 'a b'")
    for title in ("In short", "Methods compared", "Time", "Images", "Removal", "Subgroups",
                  "Does it depend on the model?", "Does it hold still?", "Metrics"):  # fmt: skip
        assert f"# {title}\n" in text
    assert "`nemt-eval --data 'a b'`" in text
    assert "77 resamples" in text
    assert "it marks 0.200, 0.100." in text
    assert "{{" not in text
    assert "None" not in text


def test_images_that_could_not_be_read_are_named(random_bundle: Bundle) -> None:
    skipped = (f"{HOSTILE}.dcm: no image",)
    text = report(random_bundle, evaluation(), command="nemt-eval", skipped=skipped)
    assert "Left out, because it could not be read:" in text
    assert "</script\\> \\| \\*a\\* \\`b\\`.dcm: no image" in text
    assert "could not be read" not in report(random_bundle, evaluation(), command="nemt-eval")


def test_the_metric_of_the_worst_masks_is_one_that_was_measured(random_bundle: Bundle) -> None:
    def worst_by(scores: Scores) -> str:
        results = evaluation()
        module = results.module.model_copy(update={"scores": scores})
        results = results.model_copy(update={"methods": results.methods | {NEMT: module}})
        text = report(random_bundle, results, command="nemt-eval")
        return text.partition("worst masks, by ")[2].partition("\n")[0]

    half = about(0.5)
    assert worst_by(Scores(relevance_mass=half, complexity=half)) == "relevance mass"
    assert worst_by(Scores(faithfulness=half, complexity=half)) == "faithfulness"
    assert worst_by(Scores(complexity=half)) == "complexity"
    assert worst_by(Scores()) == ""


def test_slow_methods_are_mentioned_if_there_are_any(random_bundle: Bundle) -> None:
    results = evaluation()
    assert "without a GPU" not in report(random_bundle, results, command="x").split("## Metrics")[0]
    slow = results.methods["gradcam++"].model_copy(update={"asked": 2})
    results = results.model_copy(update={"methods": results.methods | {"gradcam++": slow}})
    assert "without a GPU" in report(random_bundle, results, command="x").split("## Metrics")[0]


def test_a_quick_evaluation_has_no_further_sections(random_bundle: Bundle) -> None:
    results = evaluation(
        randomisation=None, stability={}, input_invariance={}, silence={}, subgroups={},
        truth_share=None,
    )  # fmt: skip
    text = report(random_bundle, results, command="nemt-eval")
    assert "Removal" not in text
    assert "no ground truth of where to look" in text


@pytest.mark.parametrize("place", ["note", "target", "source", "command", "failure", "view"])
def test_no_html_or_table_of_the_data_gets_into_a_page(
    random_bundle: Bundle, tmp_path: Path, place: str
) -> None:
    results = evaluation()
    scope = results.scope
    if place == "note":
        scope = scope.model_copy(update={"notes": (HOSTILE,)})
    elif place == "source":
        scope = scope.model_copy(update={"sources": (HOSTILE,)})
    elif place == "view":
        groups = {"view": {HOSTILE: results.subgroups["view"]["PA"]}}
        results = results.model_copy(update={"subgroups": groups})
    elif place == "failure":
        failing = results.module.model_copy(update={"failed": 1, "failures": (HOSTILE,)})
        results = results.model_copy(update={"methods": results.methods | {NEMT: failing}})
    manifest = random_bundle.manifest.model_copy(
        update={"target": HOSTILE if place == "target" else "x"}
    )
    bundle = replace(random_bundle, manifest=manifest)
    command = HOSTILE if place == "command" else "nemt-eval"
    text = report(bundle, results.model_copy(update={"scope": scope}), command=command)
    for name in ("bars", "panels", "worst", "curves", "randomisation"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    page = to_html(text, HOSTILE, tmp_path)
    assert "<script>" not in page
    assert "&lt;script&gt;alert('x')&lt;/script&gt; | *a* `b`" in page
    assert "<em>a</em>" not in page


def test_the_charts(tmp_path: Path) -> None:
    results = evaluation()
    assert results.randomisation is not None
    draw_bars(tmp_path / "bars.png", results)
    draw_curves(tmp_path / "curves.png", results)
    draw_randomisation(tmp_path / "randomisation.png", results.randomisation)
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3
