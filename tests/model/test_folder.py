"""A bundle's figures are replaced so that a kill leaves the old bundle or the new one."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemt_dicom.errors import BundleError
from nemt_dicom.files import Fs
from nemt_dicom.model import folder as bundle_folder
from nemt_dicom.model.bundle import Bundle, save, save_figures
from nemt_dicom.model.manifest import EVALUATION, FILES, MANIFEST, MODEL_CARD
from nemt_dicom.model.upgrade import upgrade
from tests.conftest import random_description, random_network
from tests.model.bundle_kit import evaluation


@pytest.fixture
def copy(random_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.load(Path(shutil.copytree(random_bundle.folder, tmp_path / "bundle")))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Killed(BaseException):
    """Ends a process at this step: nothing after it happens, no cleaning up either."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> bool:
    """Runs it and kills it at its file operation number `step`; False if it ended before.

    The file that is being written then is half there.
    """
    left, write = [step], Fs.write

    def counted(whole: Callable[..., object]) -> Callable[..., object]:
        def operate(*arguments: Any, **options: Any) -> object:
            left[0] -= 1
            if left[0] == 0 and whole is write:
                fs, path, data = arguments
                write(fs, path, data[: len(data) // 2])
            if left[0] <= 0:  # no operation of a `finally` is done either
                raise Killed
            return whole(*arguments, **options)

        return operate

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(Fs, "write", counted(write))
        try:
            run()
        except Killed:
            return True
    return False


def test_figures_change_the_folder_and_not_the_model(copy: Bundle) -> None:
    first = save_figures(copy, evaluation(0.5), "# First\n")
    assert names(copy.folder) == {MANIFEST, EVALUATION, *FILES}
    assert set(first.manifest.sha256) == {MANIFEST, EVALUATION, *FILES}
    assert first.evaluation == evaluation(0.5).for_bundle()
    assert first.model_card == "# First\n"
    second = save_figures(first, evaluation(0.6), "# Second\n")
    assert second.evaluation == evaluation(0.6).for_bundle()
    assert len({copy.digest, first.digest, second.digest}) == 3
    assert copy.model_digest == first.model_digest == second.model_digest
    assert save_figures(second, evaluation(0.5), "# First\n").digest == first.digest


def test_saved_without_figures_a_bundle_has_none(copy: Bundle) -> None:
    save_figures(copy, evaluation(), "# Card\n")
    again = save(copy.folder, random_network(), random_description(), "# Random weights\n")
    assert again.evaluation is None
    assert names(copy.folder) == {MANIFEST, *FILES}
    assert again.digest == copy.digest


def test_a_kill_leaves_the_old_bundle_or_the_new_one(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_figures(copy, evaluation(0.1), "# 1\n")
    seen, step = set(), 1
    while killed_at(
        step, monkeypatch, lambda: save_figures(Bundle.load(copy.folder), evaluation(0.2), "# 2\n")
    ):
        bundle = Bundle.load(copy.folder)
        assert bundle.evaluation is not None
        assert bundle.evaluation.module.scores.faithfulness is not None
        told = (bundle.evaluation.module.scores.faithfulness.mean, bundle.model_card)
        assert told in {(0.1, "# 1\n"), (0.2, "# 2\n")}
        bundle.network("cpu")
        seen.add((told, names(copy.folder) == {MANIFEST, EVALUATION, *FILES}))
        if told[0] == 0.2:  # the next one begins where this one was interrupted
            assert save_figures(bundle, evaluation(0.1), "# 1\n").model_card == "# 1\n"
        step += 1
    assert {told for told, _ in seen} == {(0.1, "# 1\n"), (0.2, "# 2\n")}
    assert {tidy for _, tidy in seen} == {True, False}
    assert names(copy.folder) == {MANIFEST, EVALUATION, *FILES}


def test_a_second_kill_does_no_more_harm(
    copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_figures(copy, evaluation(0.1), "# 1\n")
    folder, step = tmp_path / "killed", 1

    def publish(figure: float) -> object:
        return save_figures(Bundle.load(folder), evaluation(figure), f"# {figure}\n")

    while True:  # to where the manifest is the new one and the other files are not
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copy.folder, folder)
        assert killed_at(step, monkeypatch, lambda: publish(0.2))
        if Bundle.load(folder).model_card == "# 0.2\n":
            break
        step += 1
    killed = Path(shutil.copytree(folder, tmp_path / "once"))
    assert names(killed) > {MANIFEST, EVALUATION, *FILES}
    step = 1
    while killed_at(step, monkeypatch, lambda: publish(0.3)):
        assert Bundle.load(folder).model_card in {"# 0.2\n", "# 0.3\n"}
        shutil.rmtree(folder)
        shutil.copytree(killed, folder)
        step += 1
    assert Bundle.load(folder).model_card == "# 0.3\n"


def test_a_bundle_that_would_not_verify_does_not_take_the_place(copy: Bundle) -> None:
    damaged = replace(copy, manifest=copy.manifest.model_copy(update={"target": "effusion"}))
    with pytest.raises(BundleError, match="target"):
        save_figures(damaged, evaluation(), "# Card\n")
    assert Bundle.load(copy.folder) == copy
    assert names(copy.folder) == {MANIFEST, *FILES}


def test_figures_that_nobody_signed_are_not_read(copy: Bundle) -> None:
    (copy.folder / EVALUATION).write_text("{}")
    assert Bundle.load(copy.folder).evaluation is None


def test_damaged_figures_are_refused(copy: Bundle) -> None:
    path = save_figures(copy, evaluation(), "# Card\n").folder / EVALUATION
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.8"))
    with pytest.raises(BundleError, match=r"evaluation\.json is damaged"):
        Bundle.load(copy.folder)


def test_a_figure_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite number"):
        evaluation(float("nan"))


def test_a_bundle_that_is_replaced_while_it_is_read(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nemt-eval --into-bundle` may run while a service starts."""
    save_figures(copy, evaluation(0.1), "# 1\n")
    require, left = bundle_folder.require, [1]

    def slow(folder: Path, name: str, digest: str | None) -> Path:
        if left.pop() if left else 0:
            save_figures(Bundle.load(folder), evaluation(0.2), "# 2\n")
        return require(folder, name, digest)

    monkeypatch.setattr(bundle_folder, "require", slow)
    assert Bundle.load(copy.folder).model_card == "# 2\n"


@pytest.mark.parametrize("moment", ["before it is opened", "after it was opened"])
def test_a_file_that_takes_its_name_while_it_is_read(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name, opened = "golden.dcm", Path.open
    draft = copy.folder / f"{name}.new"
    shutil.copyfile(copy.folder / name, draft)

    def opening(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == draft and moment.startswith("before"):
            draft.replace(copy.folder / name)
        file = opened(path, *arguments, **options)
        if path == draft and moment.startswith("after"):
            draft.replace(copy.folder / name)
        return file

    monkeypatch.setattr(Path, "open", opening)
    bundle_folder.require(copy.folder, name, copy.manifest.sha256[name])
    assert not draft.exists()


def test_figures_that_take_their_name_after_they_were_found(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_figures(copy, evaluation(0.3), "card")
    (copy.folder / EVALUATION).rename(copy.folder / f"{EVALUATION}.new")
    require = bundle_folder.require

    def requiring(folder: Path, name: str, digest: str | None) -> Path:
        path = require(folder, name, digest)
        if name == EVALUATION:
            bundle_folder.settle(folder)
        return path

    monkeypatch.setattr(bundle_folder, "require", requiring)
    assert Bundle.load(copy.folder).evaluation == evaluation(0.3).for_bundle()


def test_a_manifest_that_cannot_be_read_costs_no_file(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill the only copy of a new file may be a draft."""
    (copy.folder / MODEL_CARD).rename(copy.folder / f"{MODEL_CARD}.new")
    with monkeypatch.context() as patch:

        def failing(_path: Path) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(Path, "read_bytes", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            bundle_folder.settle(copy.folder)
    assert Bundle.load(copy.folder) == copy
    bundle_folder.settle(copy.folder)
    assert names(copy.folder) == {MANIFEST, *FILES}


def test_a_whole_bundle_in_a_read_only_folder_is_settled(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk even the removal of a missing file is an error."""

    def read_only(path: Path, **_options: bool) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    assert not upgrade(copy.folder).changed


def test_new_files_are_on_the_disk_before_the_manifest_takes_its_name(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replaced, synchronised = Path.replace, Fs.fsync

    def replacing(path: Path, target: Path) -> Path:
        done.append(f"replace {path.name}")
        return replaced(path, target)

    def synchronising(fs: Fs, path: Path) -> None:
        done.append(f"fsync {path.name}")
        synchronised(fs, path)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Fs, "fsync", synchronising)
    save_figures(copy, evaluation(), "# Card\n")
    folder = f"fsync {copy.folder.name}"
    assert set(done[:3]) == {f"fsync {name}.new" for name in (MODEL_CARD, EVALUATION, MANIFEST)}
    assert done[3:6] == [folder, f"replace {MANIFEST}.new", folder]
