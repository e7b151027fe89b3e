"""What a notebook may rely on: the names that `nemt_dicom` exports, and their use."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nemt_dicom
from nemt_dicom import pipeline
from nemt_dicom.errors import BundleError, Refused
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.golden import golden_radiograph
from tests.conftest import ROOT

NAMES = {"Bundle", "Explainer", "Explanation", "Radiograph", "__version__", "explain_file"}
"""A name that leaves this list breaks the notebooks of others: say so in CHANGELOG."""


def test_the_exported_names() -> None:
    assert set(nemt_dicom.__all__) == NAMES
    for name in NAMES:
        assert getattr(nemt_dicom, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'explain_folder'"):
        _ = nemt_dicom.explain_folder


def test_the_package_alone_loads_nothing_heavy() -> None:
    """The listener imports the package, and must not load torch by that."""
    program = (
        "import sys, nemt_dicom; print(sorted({'torch', 'numpy', 'pydicom'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"


def test_the_lines_of_the_readme(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As they stand there, on a radiograph that is drawn, with a small bundle."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    golden_radiograph().save_as(tmp_path / "chest.dcm", enforce_file_format=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        pipeline.Bundle, "load_served", classmethod(lambda _cls, _folder: random_bundle)
    )
    names: dict[str, Any] = {}
    exec(lines, names)
    explained = names["explained"]
    assert explained.explanation.mask.shape == explained.radiograph.pixels.shape == (420, 350)
    assert f"{explained.explanation.evidence.probability}" in capsys.readouterr().out
    with Image.open("chest.png") as picture:
        assert max(picture.size) > 1000
        assert picture.mode == "RGB"


def test_what_cannot_be_explained_says_why(random_bundle: Bundle, tmp_path: Path) -> None:
    lateral = golden_radiograph()
    lateral.ViewPosition = "LL"
    lateral.save_as(tmp_path / "lateral.dcm", enforce_file_format=True)
    with pytest.raises(Refused, match="lateral_view"):
        nemt_dicom.explain_file(tmp_path / "lateral.dcm", bundle=random_bundle.folder)
    with pytest.raises(BundleError, match="not a whole bundle"):
        nemt_dicom.explain_file(tmp_path / "lateral.dcm", bundle=tmp_path)
