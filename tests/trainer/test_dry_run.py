"""What a run would cost: the report of `--dry-run`, on a few synthetic images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.synthetic_sets import write_rsna
from tests.trainer.training_kit import quick, small_recipe
from trainer import dry_run
from trainer.cli import main
from trainer.progress import Silent
from trainer.training.places import Places


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rsna(tmp_path_factory.mktemp("sets") / "rsna", count=64)


def test_the_dry_run_spends_nothing(
    rsna: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dry"
    data = ["--target", "pneumonia", "--data", str(rsna)]
    assert main([*data, *quick(), "--dry-run", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("RSNA train", "classifier", "explanation module", "memory", "parameters"):
        assert word in text
    assert not out.exists()


def test_the_current_folder_is_the_data(
    rsna: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(rsna)
    assert main(["--target", "pneumonia", *quick(), "--dry-run"]) == 0
    assert "RSNA train" in capsys.readouterr().out
    monkeypatch.chdir(rsna.parent)
    assert main(["--target", "pneumonia", *quick()]) == 1
    assert "with --data" in capsys.readouterr().err


def report(rsna: Path, **sections: Any) -> str:
    places = Places(folders=(rsna,), out=Path("none"), cache=rsna.parent / "cache")
    return dry_run.dry_run(small_recipe(**sections), places, Silent())


def test_each_stage_is_measured_by_one_real_step_after_another(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, names = dry_run.take_step, []

    def take_step(stage: Any, *further: Any) -> Any:
        names.append(stage.name)
        return whole(stage, *further)

    monkeypatch.setattr(dry_run, "take_step", take_step)
    text = report(rsna, target_model={"teachers": 2, "epochs": 3})
    assert names == ["classifier"] * 4 + ["explanation module"] * 2
    count = {cells[1].strip(): cells[2].strip() for cells in
             (line.split("|") for line in text.splitlines()) if len(cells) > 4}  # fmt: skip
    assert int(count["teachers"]) == 2 * int(count["classifier"])
    assert int(count["classifier"]) == 3 * int(count["explanation module"])


def test_a_batch_larger_than_the_set_is_measured(rsna: Path) -> None:
    assert "explanation module" in report(rsna, run={"batch": 4000})


def test_notes_of_the_data_are_shown_as_they_are(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dry_run.read_tables

    def read_tables(*arguments: Any) -> Any:
        return replace(whole(*arguments), notes=("| *a* <i>",))

    monkeypatch.setattr(dry_run, "read_tables", read_tables)
    assert "- \\| \\*a\\* \\<i\\>" in report(rsna)
