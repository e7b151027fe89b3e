"""Several processes: what each gets, and that they train as one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.trainer.synthetic_sets import write_nih
from tests.trainer.training_kit import quick
from trainer.cli import main
from trainer.training.distributed import Team
from trainer.training.draws import balanced
from trainer.training.loop import batches


def launch(processes: int, *arguments: str) -> subprocess.Popen[bytes]:
    """A program by torchrun, which finds a port by itself: one that is free now may be taken."""
    where = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *where, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def shares(rows: np.ndarray, size: int) -> list[np.ndarray]:
    device = torch.device("cpu")
    return [Team(rank=rank, size=size, device=device).share(rows) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("batch", [8, 12, 32])
def test_each_process_gets_both_kinds_in_the_same_proportion(size: int, batch: int) -> None:
    likely = np.arange(100) < 30
    for rows in batches(balanced((1, "explanation module", 1), likely), batch):
        dealt = [likely[share] for share in shares(rows, size)]
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        kinds = [int(share.sum()) for share in dealt], [int((~share).sum()) for share in dealt]
        assert all(min(kind) >= 1 and max(kind) - min(kind) <= 1 for kind in kinds)
        assert batch % (2 * size) or all(share.mean() == 0.5 for share in dealt)
        assert all(share[0] != share[1] for share in dealt)  # and so do the parts of a batch


def test_a_process_alone_has_the_batch_as_it_is() -> None:
    assert shares(np.arange(7)[::-1], 1)[0].tolist() == [6, 5, 4, 3, 2, 1, 0]


AVERAGES = """
import sys, torch
from trainer.training.distributed import Team

def averaged(team):
    norm, frozen = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2).eval()
    wrapped = team.wrap(torch.nn.Sequential(norm, torch.nn.Conv2d(2, 2, 1), frozen))
    for step in range(2):
        torch.manual_seed(team.rank + 10 * step)
        wrapped(torch.randn(4, 2, 3, 3)).sum().backward()
        team.average_statistics(wrapped)
    return norm.state_dict(), frozen.state_dict()

team = Team.join("cpu")
torch.save(averaged(team), f"{sys.argv[1]}/{team.rank}.pt")  # what is wrapped is gone by now
team.wait()
team.leave()
"""


def test_running_statistics_are_the_mean_of_all_processes(tmp_path: Path) -> None:
    (tmp_path / "averages.py").write_text(AVERAGES, encoding="utf-8")
    assert launch(2, str(tmp_path / "averages.py"), str(tmp_path)).wait() == 0
    norms = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    for rank, norm in enumerate(norms):
        for step in range(2):
            torch.manual_seed(rank + 10 * step)
            norm(torch.randn(4, 2, 3, 3))
    for rank in range(2):
        norm_state, frozen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in ("running_mean", "running_var"):
            mean = (norms[0].state_dict()[name] + norms[1].state_dict()[name]) / 2
            assert torch.allclose(norm_state[name], mean)
        assert not frozen["running_mean"].any()


MODULE = """
import sys
from dataclasses import replace
from pathlib import Path
from nemt_dicom.model.network import ExplainedNetwork
from tests.trainer.training_kit import small_recipe
from trainer.prepare import make_repeatable, prepare
from trainer.progress import Silent
from trainer.training.distributed import Team
from trainer.training.explanation_stage import ExplanationStage
from trainer.training.loop import Run, fit
from trainer.training.places import Places

data, out, batch, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
recipe = small_recipe(
    explanation_module={"area_weight": 1.0, "scaled": False, "epochs": epochs, "keep": "last"},
    run={"batch": batch},
)
make_repeatable(recipe)
team = Team.join("cpu")
places = Places(folders=(data,), out=out, cache=out / "cache" / str(team.rank))
prepared = prepare(recipe, places, team, Silent())
network = prepared.network
grouped = ExplainedNetwork(replace(network.architecture, decoder_norm="group"))
grouped.target_model.load_state_dict(network.target_model.state_dict())
grouped.target_model.get_classifier().bias.data += 1.0  # there is something to explain
run = Run.bare(recipe, grouped, team)
fit(ExplanationStage(grouped, prepared.train, prepared.validation, recipe), prepared.train, run)
if team.first:
    (out / "losses").write_text(" ".join(str(e.figures["train_loss"]) for e in run.epochs))
team.wait()
team.leave()
"""
"""Trains an explanation module with group norm, which knows no other image of the batch."""


@pytest.mark.parametrize(("batch", "epochs"), [(16, 2), (4, 1)], ids=["epochs", "many steps"])
def test_two_processes_train_as_one(tmp_path: Path, batch: int, epochs: int) -> None:
    data = write_nih(tmp_path / "nih", count=64)
    (tmp_path / "module.py").write_text(MODULE, encoding="utf-8")
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        told = [str(tmp_path / "module.py"), str(data), str(out), str(batch), str(epochs)]
        assert launch(processes, *told).wait() == 0
        results.append([float(loss) for loss in (out / "losses").read_text().split()])
    assert results[1] == pytest.approx(results[0], abs=1e-4)
    assert len(set(results[0])) == epochs  # it moves


def test_a_batch_that_is_too_small_to_be_shared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def four(_device: str) -> Team:
        return Team(rank=0, size=4, device=torch.device("cpu"))

    monkeypatch.setattr(Team, "join", four)
    monkeypatch.setattr(Team, "leave", lambda _: None)
    options = ["--target", "pneumonia", "--data", "data", "--out", str(tmp_path / "out")]
    assert main([*options, *quick(run={"batch": 4})]) == 1
    assert "at least 8" in capsys.readouterr().err
