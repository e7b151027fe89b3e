"""A training example and the served tensor of the same file are bit-identical."""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from nemt_dicom.config import ExplanationSettings, InputSettings
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.pipeline import read_source
from tests.trainer.synthetic_sets import write_csv_set, write_ham, write_nih, write_rsna
from trainer.data.cases import Case, find_cases
from trainer.data.examples import Examples, default_cache, load_examples


def served_tensors(explainer: Explainer, radiographs: list[Radiograph], seen) -> list[np.ndarray]:
    """What reaches the network when these are explained."""
    seen.clear()
    explainer.explain(radiographs)
    return list(seen[0])


@pytest.fixture
def explainer(random_bundle: Bundle) -> Explainer:
    return Explainer(random_bundle, ExplanationSettings(device="cpu"))


@pytest.fixture
def seen(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The images given to the network, as numpy."""
    images: list[np.ndarray] = []
    explain = explainer.network.explain

    def watched(batch: torch.Tensor):
        images.append(batch.numpy().copy())
        return explain(batch)

    monkeypatch.setattr(explainer.network, "explain", watched)
    return images


def load(cases: Sequence[Case], explainer: Explainer) -> Examples:
    return load_examples(
        cases, explainer.bundle.preprocessing, cache=default_cache(), done=lambda: None
    )


def require_no_skew(cases: Sequence[Case], explainer: Explainer, seen: list[np.ndarray]) -> None:
    examples = load(cases, explainer)
    for case, example in zip(cases, examples.images, strict=True):
        if case.kind == "dicom":
            radiograph = read_source(case.path.read_bytes(), InputSettings()).radiograph
        elif case.kind == "picture":
            radiograph = Radiograph.from_picture(case.path)
        else:
            radiograph = Radiograph.from_photograph(case.path)
        (served,) = served_tensors(explainer, [radiograph], seen)
        assert served.dtype == example.dtype == np.float32
        assert served.tobytes() == example.tobytes(), case.path.name


def test_synthetic_files(tmp_path: Path, explainer: Explainer, seen: list[np.ndarray]) -> None:
    folders = [
        write_rsna(tmp_path / "rsna"),
        write_nih(tmp_path / "nih"),
        write_csv_set(tmp_path / "own"),
    ]
    cases = find_cases(folders, target="pneumonia", validation_share=0.4).cases
    assert {case.kind for case in cases} == {"dicom", "picture"}
    require_no_skew(cases, explainer, seen)


@pytest.mark.parametrize("layout", [write_ham, partial(write_csv_set, kind="photograph")])
def test_photographs(tmp_path: Path, explainer: Explainer, seen, layout) -> None:
    folder = layout(tmp_path / "photographs")
    cases = find_cases([folder], target="melanoma", validation_share=0.3).cases
    assert {case.kind for case in cases} == {"photograph"}
    require_no_skew(cases, explainer, seen)


def test_a_file_that_came_over_the_network_gives_the_same_example(
    tmp_path: Path, explainer: Explainer, seen: list[np.ndarray]
) -> None:
    """A receiver writes its own file meta and may re-encode the header: the tensor stays."""
    folders = [write_rsna(tmp_path / "rsna")]
    case = find_cases(folders, target="pneumonia", validation_share=0.4).cases[0]
    example = load([case], explainer).images[0]
    ds = pydicom.dcmread(case.path)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    sent = pydicom.dcmread(BytesIO(buffer.getvalue()))
    radiograph = Radiograph.from_dataset(sent, InputSettings())
    assert served_tensors(explainer, [radiograph], seen)[0].tobytes() == example.tobytes()


@pytest.mark.realdata
def test_real_files(real_data: Path, explainer: Explainer, seen: list[np.ndarray]) -> None:
    cases = find_cases(
        [real_data / "nih-mini", real_data / "rsna-mini"],
        target="pneumonia",
        validation_share=0.15,
    ).cases
    chosen = [case for case in cases if case.source == "RSNA"][::10]
    chosen += [case for case in cases if case.source == "NIH"][::40]
    require_no_skew(chosen, explainer, seen)


@pytest.mark.realdata
def test_real_photographs(real_data: Path, explainer: Explainer, seen: list[np.ndarray]) -> None:
    folders = [real_data / "ham10000-mini"]
    cases = find_cases(folders, target="melanoma", validation_share=0.15).cases
    require_no_skew(cases[::40], explainer, seen)
