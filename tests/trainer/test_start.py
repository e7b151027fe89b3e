"""The commands where the extra `train` is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OF_THE_EXTRA = ("captum", "jinja2", "matplotlib", "prodigyopt", "quantus", "scipy")


@pytest.fixture
def without_the_extra(tmp_path: Path) -> dict[str, str]:
    """An environment in which no package of the extra can be imported."""
    for name in OF_THE_EXTRA:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def start(command: str, *options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    program = f"import sys; from trainer.start import {command}; sys.exit({command}())"
    return subprocess.run(
        [sys.executable, "-c", program, *options],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_needs_no_extra(without_the_extra: dict[str, str]) -> None:
    run = start("nemt_train", "--help", env=without_the_extra)
    assert run.returncode == 0, run.stderr
    assert "--recipe" in run.stdout


@pytest.mark.parametrize("command", ["nemt_train", "nemt_eval"])
def test_work_names_the_extra(
    command: str, without_the_extra: dict[str, str], tmp_path: Path
) -> None:
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    options += ["--target", "pneumonia"] if command == "nemt_train" else []
    run = start(command, *options, env=without_the_extra)
    assert run.returncode == 1
    assert "pip install 'nemt-dicom[train]'" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
