"""What the documents say is what the code does."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import UID

from nemt_dicom import __version__, cli
from nemt_dicom.config import Settings, load_settings
from nemt_dicom.errors import Reason
from nemt_dicom.intake import admission
from nemt_dicom.outputs import derived, identity, secondary_capture, segmentation
from nemt_dicom.service import listener, sender
from trainer import eval_cli as evaluation
from trainer.cli import read_arguments
from trainer.options import EPILOG

ROOT = Path(__file__).parent.parent
CONFORMANCE = (ROOT / "deploy" / "conformance.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING_TEXTS = README + EPILOG.replace("\\\n", " ")


def table(first_header: str, number: int = 0) -> list[list[str]]:
    """The rows of the table of the conformance statement whose first column is headed so."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", CONFORMANCE, re.MULTILINE):
        rows = [[c.strip() for c in line.strip("|").split("|")] for line in block.splitlines()]
        if rows[0][0] == first_header:
            found.append(rows[2:])
    assert len(found) > number, f"no table {number} headed {first_header!r}"
    return found[number]


def test_received_sop_classes_and_transfer_syntaxes() -> None:
    assert {row[1] for row in table("SOP class")} == set(admission.SOP_CLASSES)
    for name, uid in table("SOP class"):
        assert UID(uid).name == name
    assert [row[1] for row in table("Transfer syntax")] == list(listener.TRANSFER_SYNTAXES)


def test_networking_defaults() -> None:
    defaults = Settings().model_dump()
    for _, value, key in table("Parameter"):
        section, name = key.split(".")
        assert str(defaults[section][name]).removesuffix(".0") == value, key


def test_status_codes() -> None:
    answered = {listener.SUCCESS, listener.OUT_OF_RESOURCES, listener.PROCESSING_FAILURE}
    answered |= set(listener.REFUSAL_STATUS.values())
    assert {int(row[0], 16) for row in table("Status")} == answered
    on_the_wire = {Reason(reason): int(status, 16) for reason, status in table("Reason", 1)}
    assert on_the_wire == listener.REFUSAL_STATUS


def test_what_each_status_of_a_destination_leads_to() -> None:
    words = {"sent": sender.Answer.SENT, "later": sender.Answer.LATER}
    words["rejected"] = sender.Answer.REJECTED
    for codes, meaning in table("Status received"):
        for code in re.findall(r"0x[0-9A-F]{1,4}x*", codes):
            status = Dataset()
            status.Status = int(code[2:].replace("x", "0"), 16)
            assert sender.outcome_of(status).answer is words[meaning.split()[0].strip(",:")], code


def test_every_reason_is_listed_once() -> None:
    listed = [row[0] for row in table("Reason")] + [row[0] for row in table("Reason", 1)]
    assert sorted(listed) == sorted(reason.value for reason in Reason)


def test_objects() -> None:
    numbers = {row[0].split(",")[0]: int(row[5]) for row in table("Object")[:2]}
    assert numbers == {
        "Overlay": secondary_capture.SERIES_NUMBER,
        "Segmentation": segmentation.SERIES_NUMBER,
    }
    assert int(table("Object")[2][5]) == segmentation.SERIES_NUMBER_FRACTIONAL
    assert [row[0] for row in table("Copied from the radiograph")] == list(derived.COPIED)
    codes = {(row[1], row[2], row[3]) for row in table("Attribute")}
    for concept in (
        segmentation.CATEGORY,
        segmentation.TYPE,
        segmentation.LUNG,
        derived.ARTIFICIAL_INTELLIGENCE,
        derived.SEGMENTATION,
        derived.SOURCE_IMAGE,
        derived.PROCESSING_EQUIPMENT,
    ):
        assert (concept.value, concept.scheme_designator, concept.meaning) in codes


def test_settings_that_a_uid_hangs_on() -> None:
    rows = {row[0]: row[1:] for row in table("Part of the UID")}
    for column, kinds in enumerate((("seg", "seg_fractional"), ("sc",))):
        listed = {
            name.strip().removeprefix("output.")
            for names, answers in rows.items()
            for name in names.split(",")
            if names.startswith("output.") and answers[column] == "yes"
        }
        assert all(listed == set(identity.SETTINGS[kind]) for kind in kinds)


def test_versions_agree() -> None:
    """The number stands in `nemt_dicom/__init__.py`; the installed package takes it from there."""
    assert version("nemt-dicom") == __version__
    assert f"NEMt DICOM {__version__}" in CONFORMANCE
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_example_configuration_is_valid_and_complete() -> None:
    file = ROOT / "deploy" / "nemt-dicom.toml"
    settings = load_settings(file, env={})
    assert [d.kind for d in settings.destinations] == ["dicom", "folder"]
    given = tomllib.loads(file.read_text())
    text = file.read_text()
    for section, value in Settings():
        if section == "destinations":
            continue
        for key in type(value).model_fields:
            assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), f"{section}.{key} is missing"
            default = Settings().model_dump(mode="json")[section][key]
            if key in given[section] and key not in {"dir", "allowed_calling_ae_titles"}:
                assert given[section][key] == default, f"{section}.{key} is not its default"


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^(?:\$ )?(nemt-dicom [^#\n]+)", README, re.MULTILINE)))
)
def test_commands_of_the_readme_parse(command: str) -> None:
    cli._parser().parse_args(command.split()[1:])


@pytest.mark.parametrize(
    "command",
    sorted(set(re.findall(r"(?:nemt-train|trainer\.cli) (--target [^#\n`]+)", TRAINING_TEXTS))),
)
def test_training_commands_of_readme_and_help_parse(command: str) -> None:
    read_arguments(command.split())


@pytest.mark.parametrize(
    "command",
    sorted(set(re.findall(r"nemt-eval ((?:compare |--)[^#\n]+)", README + evaluation.EPILOG))),
)
def test_evaluation_commands_of_readme_and_help_parse(command: str) -> None:
    words = command.split()
    parser = evaluation.build_parser()
    if words[0] == "compare":
        parser, words = evaluation.build_compare_parser(), words[1:]
    assert parser.parse_args(words).out


def test_readme_starts_with_the_two_commands_and_the_limits() -> None:
    assert README.index("./deploy/demo.sh") < README.index("./deploy/test.sh")
    assert "not for diagnosis" in README[:1500]


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
