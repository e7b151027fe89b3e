"""A file is whole or not there, whatever happens while it is written."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nemt_dicom.files import replacing, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_whole(path, "λ\r\n")
    assert path.read_bytes() == "λ\r\n".encode()
    with path.open("rb") as reader:
        write_whole(path, b"new")
        assert reader.read() == "λ\r\n".encode()  # the file is another one, never half of each
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")
    program = textwrap.dedent(
        """
        import os, pathlib, signal, sys
        from nemt_dicom import files

        def killed(descriptor):  # all is written, and the file has no name yet
            os.kill(os.getpid(), signal.SIGKILL)

        files.os.fsync = killed
        files.write_whole(pathlib.Path(sys.argv[1]), "new")
        """
    )
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_an_error_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "missing-folder" / "figures.json"
    with pytest.raises(OSError, match="No such file"):
        write_whole(path, "x")
    folder = tmp_path / "figures.json"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(folder, "x")  # a folder cannot be replaced: the draft goes
    assert list(tmp_path.iterdir()) == [folder]


def test_several_processes_may_write_one_file(tmp_path: Path) -> None:
    """Each has a draft of its own; without that, a second writer would take the first one's."""
    path = tmp_path / "kept.npz"
    with replacing(path, shared=True) as first, replacing(path, shared=True) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"  # it ended last
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    (tmp_path / ".figures.json.part").write_bytes(b"half")
    write_whole(path, "whole")
    assert list(tmp_path.iterdir()) == [path]
