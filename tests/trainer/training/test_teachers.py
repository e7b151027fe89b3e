"""Teachers: what a target model learns from them, and runs that are stopped among them."""

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemt_dicom.model.bundle import Bundle
from tests.trainer.synthetic_sets import write_nih
from tests.trainer.training_kit import quick, settings, stop_after, trained
from trainer.cli import main, read_arguments
from trainer.prepare import prepare
from trainer.progress import Silent
from trainer.provenance import training_of
from trainer.run import Trained
from trainer.training import teachers
from trainer.training.classifier import ClassifierStage
from trainer.training.distributed import Team
from trainer.training.draws import Draws
from trainer.training.stage import Batch

OPTIONS = [
    "--target", "pneumonia",
    *quick(
        target_model={"epochs": 2, "teachers": 2},
        explanation_module={"area_weight": 1.0, "agreement": 0.0},
    ),
]  # fmt: skip


PARTS = ["teacher 1", "teacher 2", "classifier", "explanation module"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("set") / "nih", count=48)


def command(data: Path, out: Path, *options: str) -> list[str]:
    return [*OPTIONS, "--data", str(data), "--out", str(out), *options]


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(command(data, tmp_path_factory.mktemp("run") / "bundle"))


def test_teachers_are_trained_first_and_leave_no_file(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert main(command(data, out)) == 0
    with (out / "run" / "metrics.csv").open(encoding="utf-8") as file:
        parts = list(dict.fromkeys(row["part"] for row in csv.DictReader(file)))
    assert parts == PARTS
    assert not [*(out / "run").glob("teacher-*")]
    recipe = training_of(Bundle.load(out))[0].recipe
    assert recipe["target_model"]["teachers"] == 2
    card = (out / "MODEL_CARD.md").read_text("utf-8")
    assert "The target model learnt the mean answer of 2 others of its kind." in card


@pytest.mark.parametrize("part", PARTS)
def test_a_run_stopped_in_any_part_goes_on_to_the_same_bits(
    data: Path, uninterrupted: Trained, tmp_path: Path, part: str
) -> None:
    steps = len(uninterrupted.prepared.train) // 8
    before = 2 * steps * PARTS.index(part)  # two epochs each
    out = tmp_path / "bundle"
    stop_after(before + steps - 1, command(data, out))
    require_same_end(data, out, uninterrupted)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("written", [False, True], ids=["before its file", "after it"])
def test_a_run_stopped_between_two_teachers_does_too(
    data: Path,
    uninterrupted: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    written: bool,
) -> None:
    whole, calls = teachers._save, iter(range(1, 3))

    def save(*arguments: Any) -> None:
        last = next(calls) == number
        if written or not last:
            whole(*arguments)
        if last:
            raise KeyboardInterrupt

    out = tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr(teachers, "_save", save)
        with pytest.raises(KeyboardInterrupt):
            trained(command(data, out))
    require_same_end(data, out, uninterrupted)


def require_same_end(data: Path, out: Path, uninterrupted: Trained) -> None:
    assert not (out / "manifest.json").exists()
    result = trained(command(data, out, "--resume")).prepared.network.state_dict()
    for name, value in uninterrupted.prepared.network.state_dict().items():
        assert torch.equal(value, result[name]), name


def test_what_is_learnt_is_their_mean_answer_and_no_label(data: Path, tmp_path: Path) -> None:
    auxiliary = settings({"target_model.auxiliary": ["edema"]})
    recipe, places, _ = read_arguments(command(data, tmp_path, *auxiliary))
    prepared = prepare(recipe, places, Team.join("cpu"), Silent())
    network, rows = prepared.network, np.arange(8)
    images = torch.from_numpy(prepared.train.take(rows))
    network.target_model.get_classifier().weight.data.normal_(std=0.1)

    def loss(*biases: float) -> torch.Tensor:
        taught = [copy.deepcopy(network) for _ in biases]
        for each, bias in zip(taught, biases, strict=True):
            each.target_model.get_classifier().bias.data += bias
        stage = ClassifierStage(
            network, prepared.train, prepared.validation, recipe, frozen_stages=0, teachers=taught
        )
        network.zero_grad()
        draws = Draws((1, "a", 1), rows)
        losses = stage.module(Batch(images=images, rows=rows, draws=draws, done=0.0))
        losses.loss.sum().backward()
        slope: torch.Tensor = network.target_model.get_classifier().bias.grad
        return slope

    assert len(prepared.dataset.outputs) == 2  # an auxiliary label is learnt, too
    assert loss(0.0).abs().max() < 1e-5  # it answers as its teacher does: nothing to learn
    assert (loss(1.0) < -0.05).all()
    assert (loss(-1.0) > 0.05).all()
    both, one, other = loss(2.0, -1.0), loss(2.0), loss(-1.0)
    assert torch.allclose(both, (one + other) / 2, atol=1e-5)
