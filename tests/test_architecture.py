"""Rules of the house that a reader could break without noticing; import-linter keeps the layers."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from nemt_dicom.intake.pixel_data import CODECS, NATIVE
from nemt_dicom.service.listener import TRANSFER_SYNTAXES
from tests.conftest import ROOT

PACKAGE = ROOT / "nemt_dicom"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever in the file it stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


OWNERS = {
    "pynetdicom": {"listener", "dicom_sender", "demo", "pynetdicom_patches"},
    "apsw": {"database"},
    "sqlite3": set(),
    "pickle": {"child"},  # settings from parent to child, never a file
    "highdicom": {"derived", "segmentation", "secondary_capture"},
    "SimpleITK": {"preprocess"},
    "imagecodecs": {"pixel_data"},
    "timm": {"network"},
    "prodigyopt": set(),
}


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_its_owner(library: str) -> None:
    users = {p.stem for p in FILES if any(n.partition(".")[0] == library for n in imported(p))}
    assert users <= OWNERS[library]


@pytest.mark.parametrize(
    "module", ["service.listener", "service.delivery", "state.store", "state.spool"]
)
def test_network_processes_reach_no_torch_and_no_decoder(module: str) -> None:
    """Asked of a fresh interpreter: what is loaded once the module is."""
    heavy = (
        "torch",
        "timm",
        "SimpleITK",
        "highdicom",
        "imagecodecs",
        "nemt_dicom.intake.pixel_data",
    )
    program = f"import sys, nemt_dicom.{module}; print(*[n for n in {heavy} if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == ""


INSIDE_OF_PYNETDICOM = {"acse", "dimse", "dul", "to_user_queue"}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name == "service" or path.stem == "demo"],
    ids=lambda path: path.stem,
)
def test_the_inside_of_pynetdicom_is_for_one_file(path: Path) -> None:
    """Each of its private names is in pynetdicom_patches.py, with its reason."""
    if path.stem == "pynetdicom_patches":
        return
    ours = {"self", "cls", "os"}  # os._exit
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            assert not private or ast.unparse(node.value) in ours, ast.unparse(node)
            assert node.attr not in INSIDE_OF_PYNETDICOM, ast.unparse(node)
    private_imports = {
        name
        for name in imported(path)
        if name.startswith("pynetdicom.") and any(p.startswith("_") for p in name.split("."))
    }
    assert private_imports == set()
    assert "pynetdicom.transport" not in imported(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if path.stem in {"cli", "commands"}:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "sys.exit", "exit", "quit", "breakpoint"}, node.lineno
        assert "argparse" not in (ast.unparse(node) if isinstance(node, ast.Import) else "")


def test_errors_are_drawn_in_the_docstring() -> None:
    from nemt_dicom import errors

    drawn = errors.__doc__ or ""
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.NemtError)
    ]
    assert len(classes) > 5
    for error in classes:
        assert f" {error.__name__} " in f" {drawn} ".replace("\n", " "), error.__name__


def test_trainer_on_the_path_is_ours() -> None:
    """Another distribution also installs a package of this name and would overwrite files."""
    if "nemt_dicom" not in packages_distributions():
        pytest.skip("nemt-dicom runs from the checkout, it is not installed")
    # an editable installation is listed twice: its metadata, and those beside the sources
    assert set(packages_distributions()["trainer"]) == {"nemt-dicom"}


def test_trainer_package_is_only_a_docstring() -> None:
    body = ast.parse((ROOT / "trainer" / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) <= 1


def test_every_transfer_syntax_offered_can_be_decoded() -> None:
    """The listener knows no decoder, so the two lists stand apart."""
    assert set(TRANSFER_SYNTAXES) == NATIVE | set(CODECS)
