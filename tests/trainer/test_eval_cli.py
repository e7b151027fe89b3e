"""`nemt-eval` as a user calls it, on a few synthetic images: reports, bad input, bundles that are
broken, and what an evaluation changes in bundle and service.
"""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemt_dicom import cli as service
from nemt_dicom.config import Settings
from nemt_dicom.model.bundle import Bundle, save
from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.network import REPRESENTATION, ExplainedNetwork
from nemt_dicom.pipeline import PipelineEngine
from tests.conftest import random_network, write_manifest
from tests.trainer.bundle_kit import description, training, write_bundle
from tests.trainer.synthetic_sets import write_csv_set, write_ham, write_nih, write_rsna
from trainer.eval_cli import main
from trainer.evaluation.settings import SHUFFLED, EvaluationSettings

POSITIVES = 6
FEW = EvaluationSettings(
    timing_rounds=1,
    timing_slow_rounds=1,
    timing_batch=2,
    resamples=50,
    layer_groups=2,
    removal_steps=4,
    quick_seconds=1e6,
    slow_seconds=1e6,
)
FILES = {
    "report.html", "report.md", "metrics.csv", "summary.json", "bars.png", "panels.png",
    "worst.png", "curves.png", "randomisation.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    write_rsna(folder / "rsna", count=4 * POSITIVES)
    return folder


@pytest.fixture(scope="module")
def bundle(sets: Path) -> Path:
    return write_bundle(sets / "bundle", sets / "rsna")


def call(bundle: Path, data: Path, out: Path, *options: str) -> int:
    words = ["--bundle", str(bundle), "--data", str(data), "--out", str(out), *options]
    return main(words, settings=FEW)


def summary(out: Path) -> Evaluation:
    return Evaluation.model_validate_json((out / "summary.json").read_bytes())


@pytest.fixture(scope="module")
def whole(sets: Path, bundle: Path) -> Path:
    """A report with everything in it, of two methods."""
    assert call(bundle, sets / "rsna", sets / "report", "--methods", "centred_blob,random") == 0
    return sets / "report"


def test_the_report_is_one_file_that_needs_no_network(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == FILES
    text = (whole / "report.html").read_text("utf-8")
    assert text.count("data:image/png;base64,") == 5
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert "<table>" in text
    for title in ("Methods compared", "Removal", "Does it depend on the model?", "Subgroups"):
        assert title in text
    assert "**FAILS: survives**" in (whole / "report.md").read_text("utf-8")
    assert "**FAIL" in text or "<strong>FAIL" in text or "<strong>PASS" in text


def test_the_table_of_images(whole: Path) -> None:
    with (whole / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results = summary(whole)
    assert set(results.methods) == {"nemt", "centred_blob", "random", SHUFFLED}
    assert len(rows) == POSITIVES * len(results.methods)
    ours = [float(row["relevance_mass"]) for row in rows if row["method"] == "nemt"]
    mass = results.module.scores.relevance_mass
    assert mass is not None
    assert np.mean(ours) == pytest.approx(mass.mean, abs=1e-4)


def test_of_data_like_the_bundles_own_only_those_held_out(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without splits.csv the trainer places patients by a hash: so does the evaluation."""
    shutil.copytree(sets / "rsna", sets / "unplaced")
    (sets / "unplaced" / "splits.csv").unlink()
    out = sets / "held-out"
    assert call(bundle, sets / "unplaced", out, "--quick", "--methods", "random") == 1
    assert "are training or validation patients" in capsys.readouterr().err  # it had splits.csv
    former = sets / "former"  # had none, and was made before bundles kept whom they have seen
    shutil.copytree(bundle, former)
    content = Bundle.load(former).manifest.model_dump(mode="json")
    content["data"]["seen"] = None
    write_manifest(former, content)
    assert call(former, sets / "unplaced", out, "--quick", "--methods", "random", "--resume") == 0
    scope = summary(out).scope
    assert any("keeps no record of the patients" in note for note in scope.notes)
    assert 0 < scope.images < 20
    assert any("stable hash" in note for note in scope.notes)


def test_twins_of_training_images_are_no_test_images(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RSNA's images are NIH's: where no table tells whom a bundle of RSNA's saw, all data must."""
    nih = write_nih(sets / "nih-unplaced", count=24)
    table = nih / "Data_Entry_2017_v2020.csv"
    rows = [line.rpartition(",")[0] for line in table.read_text("utf-8").splitlines()]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")  # without the column split
    out = sets / "twins"
    assert call(bundle, nih, out, "--quick", "--methods", "random") == 1
    assert "Also name the data of RSNA with --data" in capsys.readouterr().err


def test_an_unreadable_image_is_named_and_only_left_out_where_asked(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = sets / "damaged"
    shutil.copytree(sets / "rsna", damaged)
    (damaged / "stage_2_train_images" / "image-23.dcm").write_bytes(b"no image")
    given = ("--quick", "--methods", "random")
    assert call(bundle, damaged, sets / "damaged-1", *given) == 1
    assert "image-23.dcm" in capsys.readouterr().err
    assert call(bundle, damaged, sets / "damaged-2", *given, "--skip-bad") == 0
    scope = summary(sets / "damaged-2").scope
    assert scope.unreadable == 1
    assert any("1 images could not be read" in note for note in scope.notes)
    assert "image-23.dcm" in (sets / "damaged-2" / "report.md").read_text("utf-8")
    assert "image-23" not in scope.model_dump_json()  # which a bundle may keep


def one_class(folder: Path, out: Path, label: str) -> Path:
    shutil.copytree(folder, out)
    path = out / "stage_2_train_labels.csv"
    lines = path.read_text("utf-8").splitlines()
    kept = [line for line in lines[1:] if line.endswith(f",{label}")]
    path.write_text("\n".join([lines[0], *kept]) + "\n", encoding="utf-8")
    return out


def test_what_cannot_be_evaluated_says_why(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sets / "empty").mkdir()
    write_ham(sets / "ham", count=14)
    write_csv_set(sets / "photographs", count=6, kind="photograph")
    write_nih(sets / "nih", count=8)
    well = one_class(sets / "rsna", sets / "well", "0")
    rsna = sets / "rsna"
    for data, options, message in (
        (sets / "empty", [], "holds no labels that are recognised"),
        (sets / "nowhere", [], "does not exist"),
        (sets / "ham", [], "holds photographs, and the bundle was trained on radiographs"),
        (sets / "photographs", [], "holds photographs, and the bundle was trained on radiographs"),
        (well, [], "has no image with 'pneumonia', of 6 images: there is nothing to explain"),
        (rsna, ["--methods", "gradcam,lime"], "--methods: lime is not known for this bundle"),
        (rsna, ["--split", "validation", "--into-bundle"], "figures of the test split only"),
    ):
        assert call(bundle, data, sets / "nothing", *options, "--resume") == 1, message
        assert message in capsys.readouterr().err
    assert main(["--bundle", str(sets / "empty"), "--data", str(rsna), "--out", "x"]) == 1
    assert "this is not a whole bundle" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--out", "x"])
    assert ended.value.code == 2


def test_nonsense_is_refused_in_a_line(
    sets: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = sets / "file"
    file.write_text("not a folder")
    for out, options, message in (
        (sets / "new", ["--threads", "-1"], "--threads"),
        (sets / "new", ["--threads", "1000000"], "--threads"),
        (sets / "new", ["--device", "cuda"], "finds no GPU"),
        (file, [], "is a file"),
        (file / "new", [], "cannot be made"),
        (sets / ("x" * 300), [], "cannot be made"),
    ):
        assert call(bundle, sets / "rsna", out, *options) == 1, message
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (sets / "new").exists()


def test_two_bundles_against_each_other(sets: Path, bundle: Path) -> None:
    network = random_network()
    with torch.no_grad():
        for weight in network.explanation_module.parameters():
            weight.mul_(-1)
    other = write_bundle(sets / "other", sets / "rsna", network)
    out = sets / "compared"
    words = ["compare", str(bundle), str(other), "--data", str(sets / "rsna"), "--out", str(out)]
    assert main(words, settings=FEW) == 0
    content = json.loads((out / "compare.json").read_text("utf-8"))
    mass = content["methods"]["relevance_mass"]
    difference = mass["b"]["mean"] - mass["a"]["mean"]
    assert mass["b_less_a"]["mean"] == pytest.approx(difference, abs=2e-4)
    assert mass["b_less_a"]["n"] == POSITIVES
    assert Evaluation.model_validate(content["a"]).scope.images == 2 * POSITIVES
    assert "B less A" in (out / "compare.html").read_text("utf-8")


def test_figures_go_into_bundle_and_card_and_the_service_wants_them(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    copy = sets / "copy"
    shutil.copytree(bundle, copy)
    before = Bundle.load(copy)
    assert service.main(["bundle", "show", str(copy)]) == 0
    assert "Never evaluated" in capsys.readouterr().out
    settings = Settings.model_validate({"explanation": {"bundle": str(copy), "device": "cpu"}})
    PipelineEngine(settings)
    assert "says nothing of how good its explanations are" in caplog.text
    caplog.clear()

    options = ["--methods", "gradcam++,random", "--into-bundle"]
    assert call(copy, sets / "rsna", sets / "published", *options) == 0
    written = Bundle.load(copy)
    assert written.manifest.evaluated
    assert written.digest != before.digest
    weights = "model.safetensors"
    assert written.manifest.sha256[weights] == before.manifest.sha256[weights]
    card = (copy / "MODEL_CARD.md").read_text("utf-8")
    for text in (
        "`nemt-eval` measured",
        "GradCAM++",
        "Dependence on the model",
        "Silence",
        "ROAD ↑",
    ):
        assert text in card
    capsys.readouterr()
    assert service.main(["bundle", "show", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "faithfulness" in shown
    assert "does it depend on the model?" in shown
    PipelineEngine(settings)
    assert "says nothing" not in caplog.text


@pytest.mark.parametrize("kind", ["representation", "predicted", "softmax"])
def test_a_bundle_of_every_kind_gets_a_report_and_a_card(sets: Path, kind: str) -> None:
    changes: dict[str, Any] = {
        "representation": {"outputs": (), "activation": "none", "target": REPRESENTATION},
        "predicted": {},
        "softmax": {"activation": "softmax"},
    }[kind]
    explains = "target" if kind == "softmax" else kind
    architecture = replace(random_network().architecture, explains=explains, **changes)
    record = training() if kind == "softmax" else training(thresholds=None)
    says = description(target=architecture.target, training=record)
    save(sets / kind, ExplainedNetwork(architecture).eval(), says, "# No figures\n")
    out = sets / f"{kind}-report"
    options = ["--quick", "--methods", "random", "--into-bundle"]
    assert call(sets / kind, sets / "rsna", out, *options) == 0
    results = summary(out)
    has_target = kind == "softmax"
    assert bool(results.auc) == (results.drawn is not None) == has_target
    assert (results.module.scores.faithfulness is None) == (kind == "representation")
    card = (sets / kind / "MODEL_CARD.md").read_text("utf-8")
    assert "`nemt-eval` measured" in card
    assert "None" not in card.replace("None was chosen", "")
