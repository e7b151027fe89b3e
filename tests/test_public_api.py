"""What a notebook may rely on: the names that `nemt_dicom` exports, and their use."""

import subprocess
import sys

import pytest

import nemt_dicom
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
