"""The loop: resuming after a kill, several processes, parts of a batch, and what ends a run."""

import csv
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemt_dicom.errors import TrainingError
from tests.conftest import ROOT
from tests.trainer.synthetic_sets import write_nih
from tests.trainer.training_kit import stopped_after
from trainer.cli import main
from trainer.data.cases import find_cases
from trainer.training import explanation_stage as explanation
from trainer.training import loop as train
from trainer.training.checkpoint import CheckpointFile, Standing
from trainer.training.distributed import Team
from trainer.training.draws import Draws, balanced, shuffled
from trainer.training.explanation_stage import LARGEST_AREA, SMALLEST_AREA, require_not_collapsed
from trainer.training.loop import Batch, Losses, Run, batches, read_ahead
from trainer.training.recipe import TrainingConfig

OPTIONS = [
    "--target", "pneumonia", "--backbone", "test_efficientnet", "--random-init", "--size", "64",
    "--classifier-epochs", "3", "--mask-epochs", "3", "--batch", "4", "--threads", "1",
    "--area-weight", "1", "--any-change", "--unscaled", "--classifier-lr", "0.01",
    "--teachers", "0",
]  # fmt: skip
"""A mask that neither vanishes nor covers everything, of a classifier that has learnt little."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("set") / "nih", count=128)  # has no boxes to evaluate


def command(data: Path, out: Path, *options: str) -> list[str]:
    return [*OPTIONS, "--data", str(data), "--out", str(out), *options]


def start(arguments: list[str], *, module: str = "trainer.cli") -> subprocess.Popen[bytes]:
    """`nemt-train` as a process of its own, from this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def launcher(processes: int) -> list[str]:
    """Options of torchrun, which finds a port by itself: one that is free now may be taken then."""
    return ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes)]


def losses(out: Path, part: str) -> list[float]:
    with (out / "run" / "metrics.csv").open(encoding="utf-8") as file:
        return [
            float(row["value"])
            for row in csv.DictReader(file)
            if row["part"] == part and row["figure"] == "train_loss"
        ]


def epochs_done(out: Path, part: str) -> int:
    return len(losses(out, part)) if (out / "run" / "metrics.csv").is_file() else 0


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "bundle"
    assert start(command(data, out)).wait() == 0
    return out


@pytest.mark.parametrize("part", ["classifier", "explanation module"])
def test_a_killed_run_goes_on_to_the_same_bits(
    data: Path, uninterrupted: Path, tmp_path: Path, part: str
) -> None:
    out = tmp_path / "bundle"
    process = start(command(data, out))
    while epochs_done(out, part) < 1:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.1)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    assert epochs_done(out, part) < 3
    assert main(command(data, out, "--resume")) == 0
    name = "model.safetensors"
    assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert losses(out, part) == losses(uninterrupted, part)
    assert not (out / "run" / "checkpoint.pt").exists()


def test_a_checkpoint_within_an_epoch_is_as_good(
    data: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert stopped_after(30, command(data, out)) == 130
    assert "--resume goes on" in capsys.readouterr().err
    standing, _, _ = CheckpointFile(out / "run" / "checkpoint.pt").load() or pytest.fail("no file")
    assert (standing.epoch, standing.done) == (2, 30 - len(batches_of(data)))
    assert main(command(data, out, "--resume")) == 0
    name = "model.safetensors"
    assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()


def batches_of(data: Path) -> list[Any]:
    """The batches of an epoch of these runs."""
    found = find_cases([data], target="pneumonia", validation_share=0.15).cases
    count = sum(case.split == "train" for case in found)
    return batches(shuffled((1, "classifier", 1), count), 4)


def test_what_cannot_be_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main(command(data, out, "--resume")) == 1
    assert "has no checkpoint" in capsys.readouterr().err
    process = start(command(data, out))
    while epochs_done(out, "classifier") < 1:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert main(command(data, out)) == 1
    assert "go on with --resume" in capsys.readouterr().err
    assert main(command(data, out, "--resume", "--seed", "7")) == 1
    assert "other settings (seed)" in capsys.readouterr().err
    (out / "run" / "checkpoint.pt").write_bytes(b"damaged")
    assert main(command(data, out, "--resume")) == 1
    assert "cannot be resumed from" in capsys.readouterr().err


@pytest.fixture(scope="module")
def target_model(uninterrupted: Path) -> Path:
    """The classifier of a run, so that only the explanation module is trained."""
    path = uninterrupted.parent / "target.safetensors"
    weights = load_file(uninterrupted / "model.safetensors")
    save_file(
        {k.removeprefix("target_model."): v for k, v in weights.items() if "target_model" in k},
        path,
    )
    return path


def mask_only(target_model: Path, *, epochs: int) -> tuple[str, ...]:
    """Options for the explanation module alone, in a form that sums the same in any parts.

    Few steps, for Prodigy magnifies rounding while it looks for its step size.
    """
    return (
        "--target-model", str(target_model), "--output", "0", "--mask-epochs", str(epochs),
        "--batch", "16", "--decoder-norm", "group", "--no-bfloat16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("epochs", "options"),
    [(2, ()), (1, ("--no-augment", "--batch", "4"))],
    ids=["augmented", "plain, many steps"],
)
def test_two_processes_train_as_one(
    data: Path, target_model: Path, tmp_path: Path, epochs: int, options: tuple[str, ...]
) -> None:
    given = (*mask_only(target_model, epochs=epochs), *options)
    assert main(command(data, tmp_path / "one", *given)) == 0
    arguments = [*launcher(2), "-m", "trainer.cli", *command(data, tmp_path / "two", *given)]
    assert start(arguments, module="torch.distributed.run").wait() == 0
    one, two = (losses(tmp_path / name, "explanation module") for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
    assert len(set(one)) == epochs  # it moves


def test_parts_of_a_batch_add_up_to_it(data: Path, target_model: Path, tmp_path: Path) -> None:
    given = mask_only(target_model, epochs=1)
    for name, parts in (("whole", "1"), ("parts", "3")):
        assert main(command(data, tmp_path / name, *given, "--accumulate", parts)) == 0
    whole, parts = (losses(tmp_path / n, "explanation module") for n in ("whole", "parts"))
    assert parts == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_image_taken_twice_is_drawn_for_anew(accumulate: int) -> None:
    weight, drawn = torch.nn.Parameter(torch.zeros(1)), []

    def module(batch: Batch) -> Losses:
        drawn.append(batch.draws.uniform("augment", 3))
        return Losses(loss=weight * batch.images.mean(dim=(1, 2, 3)), figures={})

    stage = SimpleNamespace(
        optimiser=torch.optim.SGD([weight], lr=0.1), augmented=lambda images, _: images
    )
    team = Team(rank=0, size=1, device=torch.device("cpu"))
    bare = Run.bare(TrainingConfig(accumulate=accumulate), None, team)
    for step in range(2):
        key = (1, "classifier", 1, step)
        train.take_step(
            stage, module, np.array([7, 7, 7, 7]), torch.ones(4, 1, 8, 8), key, 0.0, bare
        )
    found = torch.cat(drawn)  # of two steps with the same image at four places
    assert found.shape == (8, 3)
    assert len(found.flatten().unique()) == 24
    alone = Draws((1, "classifier", 1, 0), np.arange(4)).uniform("augment", 3)
    assert torch.equal(found[:4], alone)  # whatever the parts


def test_a_loss_that_is_not_finite_ends_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path / "nan", "--classifier-lr", "1e30")) == 1
    error = capsys.readouterr().err
    assert "NaN" in error
    assert "try a smaller" in error


def test_a_mask_that_vanishes_ends_the_run(
    data: Path, target_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        "--target-model", str(target_model), "--output", "0", "--area-weight", "1000",
        "--area-warmup", "0",
    )  # fmt: skip
    assert main(command(data, tmp_path / "gone", *given)) == 1
    error = capsys.readouterr().err
    assert "collapsed to nothing" in error
    assert "--area-weight" in error


def test_what_counts_as_a_collapse() -> None:
    require_not_collapsed(0.2)
    for area, text in (
        (SMALLEST_AREA / 2, "to nothing"),
        ((1 + LARGEST_AREA) / 2, "over everything"),
        (float("nan"), "NaN"),
    ):
        with pytest.raises(TrainingError, match=text):
            require_not_collapsed(area)


@pytest.mark.parametrize(
    ("areas", "ends"),
    [([1.0, 0.2, 1.0, 0.2], None), ([0.2, 1.0, 1.0, 0.2], 3), ([0.2, 0.2, 0.2, 0.0], 4)],
    ids=["passing", "twice in a row", "at the end"],
)
def test_a_collapse_may_lie_on_the_way(
    data: Path,
    target_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    areas: list[float],
    ends: int | None,
) -> None:
    left = iter(areas)

    def validated(*_: Any) -> dict[str, float]:
        return {"loss": 0.0, "area_positive": next(left)}

    given = (*mask_only(target_model, epochs=4), "--area-warmup", "0")
    with monkeypatch.context() as patch:
        patch.setattr(explanation, "validate", validated)
        code = main(command(data, tmp_path / "out", *given))
    assert code == (0 if ends is None else 1)
    assert len(list(left)) == (0 if ends is None else len(areas) - ends)


@pytest.mark.parametrize(("keep", "kept"), [("last", 3), ("loss", 2), ("faithful", 1)])
def test_which_epoch_of_the_explanation_module_is_kept(
    data: Path,
    target_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    keep: str,
    kept: int,
) -> None:
    losses, faithful = iter([3.0, 1.0, 2.0]), iter([0.3, 0.1, 0.2])

    def validated(*_: Any) -> dict[str, float]:
        return {"loss": next(losses), "area_positive": 0.2}

    given = (*mask_only(target_model, epochs=3), "--area-warmup", "0", "--keep", keep)
    with monkeypatch.context() as patch:
        patch.setattr(explanation, "validate", validated)
        patch.setattr(explanation, "mean_faithfulness", lambda *_: next(faithful))
        assert main(command(data, tmp_path / "out", *given)) == 0
    assert f"explanation module: kept as after epoch {kept}" in capsys.readouterr().err


def test_every_example_once_an_epoch_but_for_a_part_of_a_batch() -> None:
    planned = batches(np.arange(43), 8)
    assert [len(rows) for rows in planned] == [8] * 5
    assert np.array_equal(np.concatenate(planned), np.arange(40))
    assert [len(rows) for rows in batches(np.arange(5), 8)] == [5]


class Numbered:
    """Examples whose images hold their own number."""

    def __len__(self) -> int:
        return 4

    def take(self, rows) -> np.ndarray:
        return np.asarray(rows, np.float32)[:, None, None, None]


def test_images_come_in_the_order_of_their_batches_and_are_shared_out() -> None:
    planned = batches(shuffled((1,), 30), 6)
    device = torch.device("cpu")
    found: list[list[float]] = [[], []]
    for rank in (0, 1):
        team = Team(rank=rank, size=2, device=device)
        for rows, images in read_ahead(Numbered(), planned, team):  # type: ignore[arg-type]
            assert images.flatten().tolist() == team.share(rows).tolist()
            found[rank] += images.flatten().tolist()
    assert sorted(found[0] + found[1]) == list(range(30))


def shares(rows: np.ndarray, size: int) -> list[np.ndarray]:
    device = torch.device("cpu")
    return [Team(rank=rank, size=size, device=device).share(rows) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("batch", [8, 12, 32])
def test_each_process_gets_both_kinds_in_the_same_proportion(size: int, batch: int) -> None:
    likely = np.arange(100) < 30
    for rows in batches(balanced((1, "explanation module", 1), likely), batch):
        found = [likely[own] for own in shares(rows, size)]
        assert max(map(len, found)) - min(map(len, found)) <= 1
        kinds = [int(own.sum()) for own in found], [int((~own).sum()) for own in found]
        assert all(min(kind) >= 1 and max(kind) - min(kind) <= 1 for kind in kinds)
        assert batch % (2 * size) or all(own.mean() == 0.5 for own in found)
        assert all(own[0] != own[1] for own in found)  # and so do the parts of a batch


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
    launch = launcher(2)
    script = [str(tmp_path / "averages.py"), str(tmp_path)]
    assert start([*launch, *script], module="torch.distributed.run").wait() == 0
    norms = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    for rank, norm in enumerate(norms):
        for step in range(2):
            torch.manual_seed(rank + 10 * step)
            norm(torch.randn(4, 2, 3, 3))
    for rank in range(2):
        found, frozen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in ("running_mean", "running_var"):
            mean = (norms[0].state_dict()[name] + norms[1].state_dict()[name]) / 2
            assert torch.allclose(found[name], mean)
        assert not frozen["running_mean"].any()


def test_a_batch_that_is_too_small_to_be_shared_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def four(_device: str) -> Team:
        return Team(rank=0, size=4, device=torch.device("cpu"))

    monkeypatch.setattr(Team, "join", four)
    monkeypatch.setattr(Team, "leave", lambda _: None)
    assert main(command(data, tmp_path / "out")) == 1
    assert "at least 8" in capsys.readouterr().err


class Scripted:
    """A stage whose validation gives these scores, and whose one weight counts the epochs."""

    name, advice, patience = "classifier", "", 3

    def __init__(self, scores: tuple[float, ...], tolerance: float) -> None:
        self.epochs, self._scores, self._tolerance = len(scores), list(scores), tolerance
        self._epoch = torch.zeros(1, requires_grad=True)
        self.kept = 0
        self.optimiser = torch.optim.SGD([self._epoch], lr=0.0)
        self.module = torch.nn.Module()
        self.module.forward = lambda batch: train.Losses(  # type: ignore[method-assign]
            loss=self._epoch.expand(len(batch.rows)), figures={}
        )

    def order(self, epoch: int) -> np.ndarray:
        return np.arange(4)

    def augmented(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        return images

    def begin_epoch(self) -> None:
        with torch.no_grad():
            self._epoch += 1

    def before_step(self, done: float) -> None: ...
    def after_step(self) -> None: ...

    def validate(self, done: float) -> tuple[float, dict[str, float]]:
        return self._scores[int(self._epoch) - 1], {}

    def tolerance(self, best: float) -> float:
        return self._tolerance

    def weights(self) -> dict[str, torch.Tensor]:
        return {"epoch": self._epoch}

    def keep(self, weights: dict[str, torch.Tensor] | None) -> None:
        self.kept = int(weights["epoch"]) if weights else 0

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def test_no_epoch_to_keep_ends_the_run() -> None:
    team = Team(rank=0, size=1, device=torch.device("cpu"))
    bare = Run.bare(TrainingConfig(batch=4), torch.nn.Linear(1, 1), team)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no epoch of the classifier"):
        train.fit(Scripted((float("nan"), float("inf")), 0.0), Numbered(), bare)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    states = {"network": {"weight": torch.zeros(1000, 1000)}}
    file.save(Standing(stage="first"), [], states)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.RawIOBase):
        fileno = writable = lambda _: True
        write = full

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(Path, "open", lambda *_: Full())
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be written") as raised:
            file.save(Standing(stage="second"), [], states)
    for text in ("No space left on device", "MiB are free", "--resume"):
        assert text in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    standing, _, _ = file.load() or pytest.fail("no file")
    assert standing.stage == "first"


@pytest.mark.parametrize(
    ("scores", "tolerance", "kept", "epochs"),
    [
        ((3.0, 1.0, 1.4, 2.0), 0.0, 2, 4),
        ((3.0, 1.0, 1.4, 2.0), 0.5, 3, 4),
        ((3.0, 1.0, 1.4, 2.0), float("inf"), 4, 4),
        ((3.0, 1.0, 1.0, 2.0), 0.0, 3, 4),
        ((float("inf"), 1.0, 2.0, 2.0, 2.0, 2.0), 0.5, 2, 5),
        ((float("inf"), 1.0, float("nan"), 2.0), float("inf"), 4, 4),
    ],
    ids=["best", "within the tolerance", "last", "equal", "out of patience", "not a number"],
)
def test_the_latest_epoch_that_is_as_good_as_the_best_is_kept(
    scores: tuple[float, ...], tolerance: float, kept: int, epochs: int
) -> None:
    stage = Scripted(scores, tolerance)
    team = Team(rank=0, size=1, device=torch.device("cpu"))
    run = train.Run.bare(TrainingConfig(batch=4), torch.nn.Linear(1, 1), team)  # type: ignore[arg-type]
    train.fit(stage, Numbered(), run)  # type: ignore[arg-type]
    assert (stage.kept, len(run.epochs)) == (kept, epochs)
