"""A run that is stopped, by whatever, goes on to the same bits, or says why it cannot."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nemt_dicom.errors import TrainingError
from tests.conftest import ROOT
from tests.trainer.synthetic_sets import write_nih
from tests.trainer.training_kit import losses, quick, settings, stop_after, trained
from trainer import run
from trainer.cli import main
from trainer.run import Trained
from trainer.training import loop
from trainer.training.checkpoint import CheckpointFile

OPTIONS = quick(
    target_model={"epochs": 3, "learning_rate": 0.01},
    explanation_module={"epochs": 3, "area_weight": 1.0, "fall_only": False, "scaled": False,
                        "agreement": 0.0},
    run={"batch": 4},
)  # fmt: skip
"""A mask that neither vanishes nor covers everything, of a classifier that has learnt little."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("set") / "nih", count=64)  # has no boxes to evaluate


def command(data: Path, out: Path, *options: str) -> list[str]:
    return ["--target", "pneumonia", "--data", str(data), "--out", str(out), *OPTIONS, *options]


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(command(data, tmp_path_factory.mktemp("run") / "bundle"))


def require_same(result: Trained, expected: Trained) -> None:
    """The same bits of all weights, and the same figures of all epochs."""
    weights = expected.prepared.network.state_dict()
    for name, value in result.prepared.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert result.epochs == expected.epochs


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """`nemt-train` as a process of its own, from this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("part", ["classifier", "explanation module"])
def test_a_killed_run_goes_on_to_the_same_bits(
    data: Path, uninterrupted: Trained, tmp_path: Path, part: str
) -> None:
    out = tmp_path / "bundle"
    process = start(command(data, out))
    while not losses(out, part):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    assert len(losses(out, part)) < 3
    assert (out / "run" / "train.log").read_text("utf-8").count(f"{part}, epoch 1: ") == 1
    require_same(trained(command(data, out, "--resume")), uninterrupted)


def test_a_checkpoint_within_an_epoch_is_as_good(
    data: Path, uninterrupted: Trained, tmp_path: Path
) -> None:
    out, steps = tmp_path / "bundle", len(uninterrupted.prepared.train) // 4
    stop_after(steps + 3, command(data, out))
    standing, _, _ = CheckpointFile(out / "run" / "checkpoint.pt").load() or pytest.fail("no file")
    assert (standing.epoch, standing.done) == (2, 3)
    require_same(trained(command(data, out, "--resume")), uninterrupted)


def test_an_interrupted_run_says_how_to_go_on_and_what_does_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", interrupted)
        assert main(command(data, out)) == 130
    assert "--resume goes on" in capsys.readouterr().err
    for options, message in (
        ([], "go on with --resume"),
        (["--resume", "--seed", "7"], r"other settings \(run\.seed\)"),
        (["--resume", *settings({"run.batch": 8})], r"other settings \(run\.batch\)"),
    ):
        with pytest.raises(TrainingError, match=message):
            trained(command(data, out, *options))
    (out / "run" / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="cannot be resumed from"):
        trained(command(data, out, "--resume"))


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_run_stopped_before_its_first_checkpoint_is_begun_anew(
    data: Path,
    uninterrupted: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resume: list[str],
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(run, "train_network", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(command(data, out))
    left = sorted(path.name for path in out.rglob("*.*"))
    assert left == ["config.json", "recipe.toml", "train.log"]
    require_same(trained(command(data, out, *resume)), uninterrupted)


def test_another_run_is_not_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", stopped)
        assert main(command(data, out)) == 130
    path = out / "run" / "config.json"
    begun = json.loads(path.read_text("utf-8"))

    def resumed_after(change: dict[str, Any]) -> int:
        content = begun | {"begun_with": begun["begun_with"] | change}
        path.write_text(json.dumps(content), encoding="utf-8")
        return main(command(data, out, "--resume"))

    assert resumed_after({"target model": "0" * 64}) == 1
    assert "begun with other settings (target model)" in capsys.readouterr().err
    assert resumed_after({"processes": 2}) == 1
    assert "begun with other settings (processes)" in capsys.readouterr().err
    former = {"seed": 1, "begun_with": {}}
    path.write_text(json.dumps(former), encoding="utf-8")
    assert main(command(data, out, "--resume")) == 1
    assert "begun by a release before 0.8.0" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(run.bundles, "save", full)
        software = begun["begun_with"]["software"] | {"torch": "1.0"}
        assert resumed_after({"software": software}) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "begun with torch 1.0: other bits than of a run that never stopped" in error
    assert f"{out} cannot be written" in error
    assert "No space left on device" in error
    assert "--resume" in error
    assert main(command(data, out, "--resume")) == 0
    assert not (out / "run" / "checkpoint.pt").exists()


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors")
