"""`nemt-train` from folders to a bundle that loads and explains, on a few synthetic images."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import timm
import torch
from safetensors.torch import save_file

from nemt_dicom.config import ExplanationSettings, InputSettings
from nemt_dicom.errors import BundleError, TrainingError
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.manifest import Manifest, Parent
from tests.conftest import write_manifest
from tests.trainer.synthetic_sets import write_ham, write_nih, write_rsna
from tests.trainer.training_kit import BACKBONE, quick, settings, trained
from trainer.cli import main, read_arguments
from trainer.manifest import trained_by
from trainer.metrics import features_in_step
from trainer.provenance import training_of
from trainer.report.model_card import model_card
from trainer.run import round_to_half
from trainer.training.places import Places
from trainer.training.recipe_file import preset, read_values, validated

TWO_EPOCHS = quick(target_model={"epochs": 2})
SHORT = settings({"explanation_module.epochs": 1, "run.batch": 8, "run.threads": 1})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_rsna(folder / "rsna", count=32)
    write_nih(folder / "nih")
    return folder


@pytest.fixture(scope="module")
def data(sets: Path) -> list[str]:
    places = ["--data", str(sets / "rsna"), "--data", str(sets / "nih")]
    return ["--target", "pneumonia", *places]


@pytest.fixture(scope="module")
def bundle(sets: Path, data: list[str]) -> Path:
    """A target model and an explanation module, both trained here."""
    out = sets / "bundle"
    assert main([*data, *TWO_EPOCHS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def taught(sets: Path, data: list[str], bundle: Path) -> Path:
    """The same target model with another explanation module."""
    out = sets / "taught"
    options = ["--target-model", str(bundle), "--seed", "2", "--out", str(out)]
    assert main([*data, *SHORT, *options]) == 0
    return out


@pytest.fixture(scope="module")
def served(sets: Path, data: list[str], taught: Path) -> Path:
    """Both of `taught`, served otherwise."""
    out = sets / "served"
    options = ["--keep-module", "--set", "serving.gamma=1.0", "--threads", "1", "--out", str(out)]
    assert main([*data, "--target-model", str(taught), *options]) == 0
    return out


def card_of(bundle: Bundle, manifest: Manifest) -> str:
    return model_card(manifest, bundle.architecture, bundle.evaluation)


def test_the_bundle_loads_and_explains(bundle: Path, sets: Path) -> None:
    loaded = Bundle.load(bundle)
    explainer = Explainer(loaded, ExplanationSettings(device="cpu"))
    path = next((sets / "rsna" / "stage_2_train_images").glob("*.dcm"))
    radiograph = Radiograph.from_dataset(pydicom.dcmread(path), InputSettings())
    (explanation,) = explainer.explain([radiograph])
    assert np.isfinite(explanation.mask).all()
    assert loaded.manifest.source_kinds == ("dicom", "picture")


def test_the_manifest_holds_recipe_data_and_figures(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    assert manifest["training"]["recipe"]["target_model"]["epochs"] == 2
    assert manifest["training"]["half_precision_changes_answer"] < 0.005
    assert manifest["training"]["weights"] == "float16"
    assert manifest["data"]["splits"]["RSNA test"] == {
        "images": 16, "positives": 8, "patients": 16,
    }  # fmt: skip
    loaded = Bundle.load(bundle)
    figures = loaded.evaluation
    assert figures is not None
    for figure in (figures.auc["all"], figures.mask_area.positives):
        assert figure is not None
        assert figure.lo <= figure.mean <= figure.hi
    assert set(figures.methods) == {
        "nemt", "gradcam++", "integrated_gradients", "gradient_shap", "mean_of_boxes",
        "centred_blob", "random", "shuffled_module",
    }  # fmt: skip
    assert figures.methods["gradient_shap"].library.startswith("captum ")
    for row in figures.methods.values():
        assert row.seconds is not None
        scores = row.scores
        for figure in (
            scores.relevance_mass,
            scores.relevance_rank,
            scores.complexity,
            scores.sparseness,
            row.seconds.single,
        ):
            assert figure is not None
            assert figure.lo <= figure.mean <= figure.hi
    assert figures.module.scores.faithfulness is not None
    assert figures.module.scores.faithfulness.n == 8
    assert figures.methods["gradcam++"].nemt_over is not None
    assert figures.classifier.single.mean > 0
    chance = figures.methods["random"].scores.relevance_mass
    assert chance is not None
    assert figures.truth_share is not None
    assert chance.mean == pytest.approx(figures.truth_share.mean, abs=0.02)
    assert figures.drawn is not None
    assert sum(figures.drawn.boxed_verdicts.values()) == 8


def test_the_card_says_what_it_must_and_names_no_folder(bundle: Path, sets: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text("utf-8")
    for text in (
        "Not for clinical use",
        "Wang et al.",
        "Shih et al.",
        "95 %",
        "commit",
        "bootstrap",
        "| GradCAM++ |",
        "own less others",
        "faithfulness ↑",
        "captum",
    ):
        assert text in card
    for text in (card, (bundle / "manifest.json").read_text("utf-8")):
        assert str(sets) not in text


def test_the_card_says_how_faithfulness_was_measured_at_this_size(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text("utf-8")
    assert f"Faithfulness removes {features_in_step(64)} values of 64 x 64 in a step" in card


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(0.2, "less than a minute"), (1.2, "1 minute"), (20.7, "21 minutes")],
)
def test_the_card_says_how_long_it_took(bundle: Path, minutes: float, words: str) -> None:
    loaded = Bundle.load(bundle)
    training = training_of(loaded)[0].model_copy(update={"minutes": minutes})
    manifest = loaded.manifest.model_copy(update={"training": training})
    assert f", in {words}." in card_of(loaded, manifest)


def test_the_run_folder(bundle: Path) -> None:
    run = bundle / "run"
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"classifier", "explanation module"}
    for name in ("curves.png", "masks.png", "comparison.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert not [*run.glob("*.draft")]


def test_the_log_of_a_run_has_its_stages_and_a_line_an_epoch(bundle: Path) -> None:
    lines = (bundle / "run" / "train.log").read_text("utf-8").splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  "
    assert all(re.match(time, line) for line in lines)
    told = [re.sub(time, "", line) for line in lines]
    for beginning in (
        "reading, train: ",
        "classifier: kept as after epoch ",
        "classifier, epoch 1: train_loss ",
        "classifier, epoch 2: train_loss ",
        "explanation module, epoch 1: train_loss ",
        "thresholds: ",
        "bundle ",
    ):
        assert len([line for line in told if line.startswith(beginning)]) == 1, beginning


def test_the_recipe_of_a_run_gives_the_same_weights(
    bundle: Path, data: list[str], tmp_path: Path
) -> None:
    file = bundle / "run" / "recipe.toml"
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    assert validated(read_values(str(file))).to_manifest() == manifest["training"]["recipe"]
    again = trained(["--recipe", str(file), *data[2:], "--out", str(tmp_path / "again")])
    network = again.prepared.network
    round_to_half(network, again.prepared.validation)
    expected = Bundle.load(bundle).network("cpu").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_a_bundles_target_model_gets_another_explanation_module(bundle: Path, taught: Path) -> None:
    one, other = Bundle.load(bundle), Bundle.load(taught)
    before, after = one.network("cpu"), other.network("cpu")
    for name, value in before.target_model.state_dict().items():
        assert torch.equal(value, after.target_model.state_dict()[name]), name
    assert other.architecture.outputs == one.architecture.outputs
    assert other.preprocessing.size == 64
    training, _ = training_of(other)
    recipe = training.recipe
    settings = recipe["target_model"]
    assert (settings["backbone"], settings["epochs"]) == (BACKBONE, 2)
    assert (recipe["explanation_module"]["epochs"], recipe["run"]["seed"]) == (1, 2)
    assert training.parent is not None
    assert training.parent.digest == one.model_digest
    assert [epoch.number for epoch in training.parent.epochs] == [1, 2]
    assert training.epochs[0].part == "explanation module"
    card = (taught / "MODEL_CARD.md").read_text("utf-8")
    assert f"from the bundle pneumonia {one.manifest.version} (`{one.model_digest[:12]}`)" in card
    assert "Its target model was trained by" in card


def test_a_bundle_is_served_otherwise_without_training(taught: Path, served: Path) -> None:
    one, other = Bundle.load(taught), Bundle.load(served)
    before, after = (each.network("cpu").state_dict() for each in (one, other))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert (one.architecture.gamma, other.architecture.gamma) == (0.5, 1.0)
    ours, theirs = (training_of(each)[0] for each in (other, one))
    assert ours.recipe == theirs.recipe | {"serving": theirs.recipe["serving"] | {"gamma": 1.0}}
    assert ours.parent is not None
    assert ours.parent.epochs == theirs.epochs
    card = (served / "MODEL_CARD.md").read_text("utf-8")
    assert "Target model and explanation module are from the bundle" in card
    assert "Thresholds and figures were made by" in card  # and not trained


def test_a_module_that_is_kept_explains_its_target(
    sets: Path, data: list[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["--target-model", str(bundle), "--keep-module", "--out", str(tmp_path / "none")]
    assert main([*data, *kept, "--dry-run"]) == 0
    assert "Nothing is trained." in capsys.readouterr().out
    for options in (["--target", "edema"], ["--output", "abnormal"]):
        nih = ["--target", "pneumonia", "--data", str(sets / "nih"), *kept]
        assert main([*nih, *options]) == 1
        assert "explains 'pneumonia'" in capsys.readouterr().err


def test_a_bundle_names_one_parent_and_the_files_of_the_first(
    bundle: Path, taught: Path, served: Path
) -> None:
    second, third = Bundle.load(taught), Bundle.load(served)
    parent = training_of(third)[0].parent
    assert parent is not None
    assert (parent.digest, parent.module_kept) == (second.model_digest, True)
    assert parent.epochs == training_of(second)[0].epochs
    assert training_of(second)[0].target_model_file  # the first bundle's weights
    assert parent.target_model_file is None  # the first bundle's began with no file
    card = (served / "MODEL_CARD.md").read_text("utf-8")
    assert "Its explanation module was trained by" in card
    assert "The test split trained nothing" in card
    for name, value in (("data", "other"), ("data", None), ("target_model_file", "0" * 64)):
        told = card_with_parent(third, parent.model_copy(update={name: value}))
        assert "whether the given network had seen it is not known here" in " ".join(told.split())
        assert "trained no explanation module" not in told  # it was kept

    def origin(*, keep: bool) -> Any:
        place = Path("none")
        return trained_by(
            Places(folders=(), out=place, cache=place, bundle=third, keep_module=keep)
        )

    assert origin(keep=True) == parent  # the third one trained nothing
    anew = origin(keep=False)
    assert (anew.digest, anew.module_kept, anew.epochs) == (second.model_digest, False, ())
    assert "was trained by" not in card_with_parent(third, anew)  # the first one trained it


def card_with_parent(bundle: Bundle, parent: Parent) -> str:
    training = training_of(bundle)[0].model_copy(update={"parent": parent})
    manifest = bundle.manifest.model_copy(update={"training": training})
    return card_of(bundle, manifest)


def test_a_bundle_of_an_earlier_release_is_reused(bundle: Path, tmp_path: Path) -> None:
    former = tmp_path / "former"
    shutil.copytree(bundle, former)
    content = Bundle.load(former).manifest.model_dump(mode="json")
    content["training"]["recipe"] = {
        "target": "pneumonia", "size": 64, "backbone": BACKBONE, "pretrained": False,
        "sensitivity": 0.9, "classifier_epochs": 2, "full_from": None, "preservation": 0.0,
    }  # fmt: skip
    write_manifest(former, content)
    given = ["--target", "pneumonia", "--data", "data", "--out", "out"]
    recipe, _, _ = read_arguments([*given, "--target-model", str(former)])
    settings = recipe.target_model
    assert (settings.backbone, settings.epochs, settings.teachers) == (BACKBONE, 2, 0)
    assert recipe.explanation_module == preset().explanation_module
    loaded = Bundle.load(former)
    card = card_of(loaded, loaded.manifest)
    assert "Settings that only earlier releases have: `sensitivity` 0.9." in card
    assert "the highest with a sensitivity of at least 0.9" in card


def test_out_must_be_new(bundle: Path, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*data, *TWO_EPOCHS, "--out", str(bundle)]) == 1
    assert "is not empty" in capsys.readouterr().err


# --- other images, other objectives, other backbones


@pytest.fixture(scope="module")
def ham(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_ham(tmp_path_factory.mktemp("ham") / "ham", count=140)
    return ["--target", "melanoma", "--data", str(folder)]


def test_photographs_of_lesions(ham: list[str], tmp_path: Path) -> None:
    out = tmp_path / "melanoma"
    assert main([*ham, *quick(explanation_module={"follows": False}), "--out", str(out)]) == 0
    loaded = Bundle.load(out)
    assert loaded.architecture.activation == "softmax"
    assert len(loaded.architecture.outputs) == 7
    with pytest.raises(BundleError, match="photograph"):
        Bundle.load_served(out)
    assert loaded.evaluation is not None
    module = loaded.evaluation.module
    assert None not in (module.scores.relevance_mass, module.scores.relevance_rank)
    assert None not in (module.scores.faithfulness, module.seconds)
    assert "mean_of_boxes" in loaded.evaluation.methods


def test_the_predicted_class_is_explained_by_every_method(ham: list[str], tmp_path: Path) -> None:
    out = tmp_path / "predicted"
    options = quick(explanation_module={"objective": "nemt-predicted"})
    assert main([*ham, *options, "--out", str(out)]) == 0
    measured = Bundle.load(out).evaluation
    assert measured is not None
    expected = {"nemt", "gradcam++", "integrated_gradients", "mean_of_boxes", "random"}
    assert expected <= set(measured.methods)
    with pytest.raises(BundleError, match="predicted"):
        Bundle.load_served(out)


def test_a_representation_is_explained(sets: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "features.safetensors"
    save_file(timm.create_model(BACKBONE, num_classes=8).state_dict(), path)
    given = ["--target", "pneumonia", "--data", str(sets / "nih"), "--target-model", str(path)]
    out = ["--out", str(tmp_path / "representation")]
    result = trained([*given, "--recipe", "nem-u", *quick(), *out])
    assert result.prepared.network.architecture.explains == "representation"
    assert [epoch.part for epoch in result.epochs] == ["explanation module"]


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_backbones_of_other_families(sets: Path, tmp_path: Path, backbone: str) -> None:
    side = 160 if backbone == "test_vit" else 64
    options = quick(target_model={"backbone": backbone}, input={"size": side})
    data = ["--target", "pneumonia", "--data", str(sets / "nih"), "--out", str(tmp_path / "out")]
    result = trained([*data, *options])
    network = result.prepared.network.eval()
    probability, mask = network.explain(torch.rand(2, 1, side, side))
    assert np.isfinite(probability.numpy()).all()
    assert mask.shape == (2, 1, side, side)


def test_a_folder_that_is_no_run_cannot_be_resumed(data: list[str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no checkpoint to resume from"):
        trained([*data, *quick(), "--resume", "--out", str(tmp_path / "none")])
