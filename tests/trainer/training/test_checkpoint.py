"""The checkpoint file: whole at any time."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nemt_dicom.errors import TrainingError
from trainer.training.checkpoint import CheckpointFile, Epoch, Standing


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    assert file.load() is None
    standing = Standing(stage="classifier", epoch=2, done=3, losses=[0.5, 0.25, 0.125])
    epochs = [Epoch(part="classifier", number=1, figures={"auc": 0.75})]
    file.save(standing, epochs, {"network": {"weight": torch.ones(2)}})
    content = file.load() or pytest.fail("no file")
    assert content[:2] == (standing, epochs)
    assert torch.equal(content[2]["network"]["weight"], torch.ones(2))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="cannot be resumed from"):
        CheckpointFile(tmp_path / "checkpoint.pt").load()


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
