"""What is kept is found again, and only what is the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Figure
from trainer.evaluation.code_versions import code_versions
from trainer.evaluation.result_store import LIBRARIES, ResultStore, library_versions

FIGURES = TypeAdapter(dict[str, Figure])
FIGURE = Figure(mean=0.5, lo=0.4, hi=0.6, n=3)
CODE = code_versions()


@pytest.fixture
def store(random_bundle: Bundle, tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path, random_bundle, "cpu", CODE)


def test_a_result_cut_off_is_computed_again(
    store: ResultStore, random_bundle: Bundle, tmp_path: Path
) -> None:
    store.save({"score": np.array(0.5)}, "kind", "of")
    kept = store.load("kind", "of")
    assert kept is not None
    assert float(kept["score"]) == 0.5
    assert store.load("kind", "other") is None
    assert ResultStore(tmp_path, random_bundle, "cuda", CODE).load("kind", "of") is None
    path = store.path("kind", "of")
    path.write_bytes(path.read_bytes()[:40])
    assert store.load("kind", "of") is None


def test_typed_figures_are_remembered_and_validated(store: ResultStore) -> None:
    asked = []

    def compute() -> dict[str, Figure]:
        asked.append(1)
        return {"nemt": FIGURE}

    assert store.remember(FIGURES, compute, "kind") == {"nemt": FIGURE}
    assert store.remember(FIGURES, compute, "kind") == {"nemt": FIGURE}
    assert len(asked) == 1
    for damaged in ('{"nemt": {"mean": 1}}', "[]", "no JSON"):
        store.save({"json": np.array(damaged)}, "kind")
        assert store.remember(FIGURES, compute, "kind") == {"nemt": FIGURE}
    assert len(asked) == 4


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_computes_anew(
    random_bundle: Bundle, tmp_path: Path, library: str
) -> None:
    versions = library_versions()
    computed = []

    def compute() -> dict[str, Figure]:
        computed.append(library)
        return {}

    for libraries in (versions, versions, {**versions, library: versions[library] + "1"}):
        store = ResultStore(tmp_path, random_bundle, "cpu", CODE, libraries)
        store.remember(FIGURES, compute, "kind")
    assert len(computed) == 2


def test_weights_are_part_of_what_is_kept(
    store: ResultStore, random_bundle: Bundle, tmp_path: Path
) -> None:
    digests = random_bundle.manifest.sha256 | {"model.safetensors": "0" * 64}
    manifest = random_bundle.manifest.model_copy(update={"sha256": digests})
    other = ResultStore(tmp_path, replace(random_bundle, manifest=manifest), "cpu", CODE)
    store.save({"score": np.array(1)}, "weights")
    assert other.load("weights") is None
