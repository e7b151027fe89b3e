"""The image cache: its tensors, its keys, killed runs and two runs at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemt_dicom.errors import DataError
from nemt_dicom.model.preprocess import Preprocessing
from tests.conftest import ROOT
from tests.trainer.synthetic_sets import write_csv_set, write_ham, write_nih, write_rsna
from trainer.data import examples as cache_module
from trainer.data import tensor_store
from trainer.data.cases import Case, find_cases, read_radiograph
from trainer.data.examples import Examples, default_cache, load_examples

PREPROCESSING = Preprocessing(size=48, low_percentile=0.5, high_percentile=99.5)
ROW = 4 * 48 * 48


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    """32 DICOM files and 32 pictures."""
    folders = [write_rsna(tmp_path / "rsna"), write_nih(tmp_path / "nih")]
    return find_cases(folders, target="pneumonia", validation_share=0.4).cases


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(cases: Sequence[Case], cache: Path, preprocessing=PREPROCESSING, **options) -> Examples:
    return load_examples(cases, preprocessing, cache=cache, done=lambda: None, **options)


def require_exact(examples: Examples, preprocessing: Preprocessing = PREPROCESSING) -> None:
    """Every example equals, bit for bit, the tensor of the service for the same file."""
    for i, case in enumerate(examples.cases):
        tensor, geometry = preprocessing(read_radiograph(case))
        assert examples.take([i])[0].tobytes() == tensor.tobytes(), case.path.name
        assert examples.geometries[i] == geometry


def forbid_decoding(patch: pytest.MonkeyPatch) -> None:
    def fail(case: Case) -> None:
        raise AssertionError(f"{case.path.name} is decoded again")

    patch.setattr(cache_module, "read_radiograph", fail)


def decoded_names(patch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the name of each file that is decoded from now on."""
    names: list[str] = []

    def watched(case: Case):
        names.append(case.path.name)
        return read_radiograph(case)

    patch.setattr(cache_module, "read_radiograph", watched)
    return names


def store_folder(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


# --- tensors ---


def test_examples_come_in_order_with_their_labels(cases: tuple[Case, ...], cache: Path) -> None:
    done: list[int] = []
    examples = load_examples(cases, PREPROCESSING, cache=cache, done=lambda: done.append(1))
    require_exact(examples)
    assert len(done) == len(examples) == 64
    assert examples.cases == cases
    assert examples.images.shape == (64, 1, 48, 48)
    assert examples.images.dtype == examples.labels.dtype == np.float32
    assert examples.labels.tolist() == examples.classes.tolist() == [c.label for c in cases]
    assert examples.classes.dtype == np.int64
    assert examples.patients[:2] == ("0", "1")
    assert examples.inside.shape == (64, 1, 48, 48)
    assert examples.inside.all()
    assert examples.skipped == ()


def test_take_copies_and_the_store_is_read_only(cases: tuple[Case, ...], cache: Path) -> None:
    examples = load(cases, cache)
    taken = examples.take(np.array([5, 3, 5]))
    assert type(taken) is np.ndarray
    assert np.array_equal(taken[0], taken[2])
    assert np.array_equal(taken[1], examples.images[3])
    taken[:] = 0.0
    require_exact(examples)
    with pytest.raises(ValueError, match="read-only"):
        examples.store[0] = 0.0


def test_photographs_have_three_channels_and_their_classes(tmp_path: Path, cache: Path) -> None:
    dataset = find_cases([write_ham(tmp_path / "ham")], target="mel", validation_share=0.3)
    examples = load(dataset.cases, cache)
    require_exact(examples)
    assert examples.images.shape == (70, 3, 48, 48)
    assert examples.classes.tolist() == [i % 7 for i in range(70)]
    assert examples.inside.shape == (70, 1, 48, 48)
    assert not examples.images[~np.broadcast_to(examples.inside, examples.images.shape)].any()


def test_photographs_and_radiographs_are_never_in_one_array(
    tmp_path: Path, cases: tuple[Case, ...], cache: Path
) -> None:
    photograph = replace(cases[0], kind="photograph")
    with pytest.raises(ValueError, match="one array"):
        load([*cases, photograph], cache)
    with pytest.raises(DataError, match="no images"):
        load([], cache)


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEMT_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache() == tmp_path / "a"
    monkeypatch.delenv("NEMT_CACHE")
    assert default_cache() == tmp_path / "b" / "nemt-dicom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "nemt-dicom"


def test_other_users_cannot_read_the_images(cases: tuple[Case, ...], cache: Path) -> None:
    load(cases, cache)
    assert cache.stat().st_mode & 0o077 == store_folder(cache).stat().st_mode & 0o077 == 0


def test_cache_that_cannot_be_written(cases: tuple[Case, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"cache .* cannot be used .*set NEMT_CACHE or --cache"):
        load(cases, tmp_path / "file" / "cache")


def test_full_disk_while_filling(cases: tuple[Case, ...], cache: Path) -> None:
    """After a row that did not fit, the cache is still usable."""
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({10 * ROW},) * 2)\n"
    program += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    done = run_filling(cases, cache, before=program)
    assert "cannot be used" in done.communicate(timeout=120)[1]
    assert done.returncode == 1
    require_exact(load(cases, cache))


# --- decoded once ---


def test_the_second_load_decodes_nothing(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(cases, cache).images
    size = (store_folder(cache) / "rows.bin").stat().st_size
    forbid_decoding(monkeypatch)
    again = load(cases[::-1], cache)
    assert again.images.tobytes() == first[::-1].tobytes()
    assert (store_folder(cache) / "rows.bin").stat().st_size == size == 64 * ROW


def test_files_are_known_by_content_not_by_name(
    cases: tuple[Case, ...], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(cases, cache)
    forbid_decoding(monkeypatch)
    moved = cases[40].path.rename(tmp_path / "other.png")
    assert len(load([replace(cases[40], path=moved)], cache)) == 1


def test_one_file_under_two_names_is_decoded_once(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases[41].path.write_bytes(cases[40].path.read_bytes())
    names = decoded_names(monkeypatch)
    examples = load(cases, cache)
    assert len(names) == 63
    assert examples.rows[40] == examples.rows[41]
    require_exact(examples)


def test_a_changed_file_is_decoded_anew(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(cases, cache)
    before = cases[40].path.stat()
    with Image.open(cases[40].path) as image:
        changed = np.asarray(image)[:, ::-1]
    Image.fromarray(changed).save(cases[40].path)
    os.utime(cases[40].path, ns=(before.st_atime_ns, before.st_mtime_ns))
    names = decoded_names(monkeypatch)
    require_exact(load(cases, cache))
    assert names == [cases[40].path.name]


def test_one_file_read_as_two_kinds(tmp_path: Path, cache: Path) -> None:
    """The cache tells a photograph from a grey picture of the same file."""
    folder = write_csv_set(tmp_path / "own", kind="photograph")
    case = find_cases([folder], target="melanoma", validation_share=0.4).cases[0]
    require_exact(load([case], cache))
    require_exact(load([replace(case, kind="picture")], cache))
    require_exact(load([case], cache))


def test_a_cached_file_of_the_wrong_kind_is_an_error(cases: tuple[Case, ...], cache: Path) -> None:
    load(cases, cache)
    with pytest.raises(DataError, match="cannot be read as a radiograph"):
        load([replace(cases[40], kind="dicom")], cache)


@pytest.mark.parametrize("change", [{"size": 64}, {"low_percentile": 1.0}])
def test_another_preprocessing_decodes_anew(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch, change
) -> None:
    load(cases, cache)
    names = decoded_names(monkeypatch)
    other = replace(PREPROCESSING, **change)
    require_exact(load(cases, cache, other), other)
    assert len(names) == 64


@pytest.mark.parametrize("change", ["front end", "library"])
def test_other_code_decodes_anew(
    cases: tuple[Case, ...],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    load(cases, cache)
    names = decoded_names(monkeypatch)
    if change == "library":
        monkeypatch.setattr(tensor_store, "version", lambda name: f"{name} of tomorrow")
    else:
        changed = shutil.copytree(tensor_store.SERVICE, tmp_path / "nemt_dicom")
        with (changed / "intake" / "display.py").open("ab") as file:
            file.write(b"#")
        other = tensor_store.front_end_digest(changed)
        monkeypatch.setattr(tensor_store, "front_end_digest", lambda _package: other)
    load(cases, cache)
    assert len(names) == 64


def test_the_key_covers_every_module_of_the_front_end() -> None:
    """If code moves from these modules into a new one, the new one must be added."""
    script = (
        "import sys, nemt_dicom.model.preprocess;"
        "print(*sorted(n for n, m in sys.modules.items() if n.startswith('nemt_dicom.')"
        " and not hasattr(m, '__path__')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    files = {f"{name.partition('.')[2].replace('.', '/')}.py" for name in run.stdout.split()}
    assert files - {"config.py", "settings.py", "errors.py", "log.py"} == set(
        tensor_store.FRONT_END
    )


# --- images that cannot be used ---


def test_unreadable_images_are_named_together(cases: tuple[Case, ...], cache: Path) -> None:
    for case in (cases[2], *cases[40:44]):
        case.path.write_bytes(b"no image " + case.path.name.encode())
    cases[50].path.unlink()
    expected = (
        r"6 of 64 images cannot be used: .*image-2\.dcm: cannot be read as a radiograph.*; "
        r".*00000008_000\.png: .*; .*; \.\.\.; --skip-bad to go on"
    )
    done: list[int] = []
    with pytest.raises(DataError, match=expected):
        load_examples(cases, PREPROCESSING, cache=cache, done=lambda: done.append(1))
    assert len(done) == 64
    examples = load(cases, cache, skip_bad=True)
    require_exact(examples)
    assert len(examples) == 58
    assert len(examples.skipped) == 6
    assert "image-2.dcm: cannot be read as a radiograph" in examples.skipped[0]
    assert "00000018_000.png: cannot be read" in examples.skipped[5]


def test_good_images_are_kept_when_others_are_bad(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = cases[2].path.read_bytes()
    cases[2].path.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 64"):
        load(cases, cache)
    cases[2].path.write_bytes(content)
    names = decoded_names(monkeypatch)
    require_exact(load(cases, cache))
    assert names == [cases[2].path.name]


def test_nothing_but_bad_images(cases: tuple[Case, ...], cache: Path) -> None:
    cases[2].path.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images"):
        load([cases[2]], cache, skip_bad=True)


# --- kills, and two runs at once ---

FILL = """
import sys
from pathlib import Path
from nemt_dicom.errors import DataError
from nemt_dicom.model.preprocess import Preprocessing
from trainer.data import examples as cache
from trainer.data.cases import Case
cache.CHUNK = 4
paths = [Path(path) for path in sys.argv[2:]]
cases = [
    Case(path=path, source="CSV", kind="dicom" if path.suffix == ".dcm" else "picture",
         patient="1", split="train", label=1)
    for path in paths
]
def done():
    print("done", flush=True)
try:
    cache.load_examples(
        cases, Preprocessing(size=48, low_percentile=0.5, high_percentile=99.5),
        cache=Path(sys.argv[1]), done=done,
    )
except DataError as error:
    sys.exit(str(error))
"""


def run_filling(cases: Sequence[Case], cache: Path, before: str = "") -> "subprocess.Popen[str]":
    arguments = [str(cache), *(str(case.path) for case in cases)]
    return subprocess.Popen(
        [sys.executable, "-c", before + FILL, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize("images", [1, 7, 30, 50])
def test_killed_while_filling(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    process = run_filling(cases, cache)
    assert process.stdout is not None
    for _ in range(images):
        assert process.stdout.readline() == "done\n"
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    lines = (store_folder(cache) / "index.jsonl").read_bytes().count(b"\n")
    assert lines >= images // 4 * 4 - 4  # the committed rows
    names = decoded_names(monkeypatch)
    require_exact(load(cases, cache))
    assert len(names) == 64 - lines
    forbid_decoding(monkeypatch)
    load(cases, cache)


def test_two_runs_fill_at_once(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run damages rows of the other run, and no image is stored twice."""
    runs = [run_filling(cases, cache), run_filling(cases[::-1], cache)]
    for run in runs:
        out, error = run.communicate(timeout=120)
        assert (run.returncode, error) == (0, "")
        assert out.count("done") == 64
    assert (store_folder(cache) / "rows.bin").stat().st_size == 64 * ROW
    forbid_decoding(monkeypatch)
    require_exact(load(cases, cache))


def test_a_run_waits_for_the_rows_that_another_is_adding(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is decoded by only one of two runs with the same files in the same order."""
    store = tensor_store.TensorStore.open(cache, PREPROCESSING, 1)
    with store.locked():
        run = run_filling(cases[:4], cache)
        tensors = {}
        for case in cases[:4]:
            key = cache_module._key(case)
            assert not isinstance(key, DataError)
            tensors[key] = PREPROCESSING(read_radiograph(case))
        time.sleep(3)
        assert run.poll() is None
        store.add(tensors)
    assert run.communicate(timeout=60)[0].count("done") == 4
    assert (store_folder(cache) / "rows.bin").stat().st_size == 4 * ROW


TAILS = {
    "half a row": ("rows.bin", b"\x01" * (ROW // 2)),
    "a row without its line": ("rows.bin", b"\x01" * ROW),
    "half a line": ("index.jsonl", b'{"row": 64, "sha256": "0'),
    "a line without its row": (
        "index.jsonl",
        json.dumps(
            {"row": 64, "sha256": "0", "kind": "dicom", "rows": 9, "columns": 9,
             "orientation": ["L", "F"]}
        ).encode() + b"\n",
    ),
    "zeros of a power cut": ("index.jsonl", b"\0" * 20000 + b"\n"),
}  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
def test_a_partial_tail_is_ignored_and_overwritten(
    cases: tuple[Case, ...], cache: Path, monkeypatch: pytest.MonkeyPatch, tail: str
) -> None:
    load(cases[:50], cache)
    name, content = TAILS[tail]
    content = content.replace(b'"row": 64', b'"row": 50')
    with (store_folder(cache) / name).open("ab") as file:
        file.write(content)
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        require_exact(load(cases[:50], cache))
    names = decoded_names(monkeypatch)
    require_exact(load(cases, cache))
    assert len(names) == 14
    lines = (store_folder(cache) / "index.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(64))
    assert (store_folder(cache) / "rows.bin").stat().st_size == 64 * ROW


def test_rows_that_were_cut_off_are_decoded_anew(cases: tuple[Case, ...], cache: Path) -> None:
    load(cases, cache)
    with (store_folder(cache) / "rows.bin").open("r+b") as file:
        file.truncate(20 * ROW + 5)
    require_exact(load(cases, cache))


# --- the real sets ---


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("names", "target"),
    [(("rsna-mini", "nih-mini"), "pneumonia"), (("ham10000-mini",), "melanoma")],
)
def test_the_real_sets(
    real_data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, names, target: str
) -> None:
    folders = [real_data / name for name in names]
    cases = find_cases(folders, target=target, validation_share=0.15).cases[::12]
    require_exact(load(cases, cache))
    forbid_decoding(monkeypatch)
    assert len(load(cases, cache)) == len(cases) >= 74
