"""Subgroups: what the header of a file tells of a case, however damaged it is."""

from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from tests.trainer.synthetic_sets import write_rsna
from trainer.data.cases import Case, find_cases
from trainer.evaluation.subgroups import UNKNOWN, properties


@pytest.fixture
def case(tmp_path: Path) -> Case:
    dataset = find_cases([write_rsna(tmp_path / "rsna")], target="pneumonia", validation_share=0.4)
    case = dataset.cases[0]
    ds = pydicom.dcmread(case.path)
    ds.PatientSex, ds.PatientAge = "F", "051Y"
    ds.save_as(case.path)
    return case


def told(case: Case) -> tuple[str, ...]:
    return tuple(str(values[0]) for values in properties([case]).values())


def test_the_header_tells_what_the_table_does_not(case: Case) -> None:
    assert told(case) == ("PA", "F", "40 to 64")


def test_a_damaged_attribute_is_not_known_and_the_others_are(case: Case) -> None:
    ds = pydicom.dcmread(case.path)
    tag = Tag("PatientSex")
    ds[tag] = RawDataElement(tag, "Q?", 2, b"F ", 0, is_implicit_VR=False, is_little_endian=True)
    ds.save_as(case.path)
    data = case.path.read_bytes()
    assert b"Q?" in data
    assert told(case) == ("PA", UNKNOWN, "40 to 64")


def test_a_file_that_cannot_be_read_tells_nothing(case: Case) -> None:
    case.path.write_bytes(b"not DICOM")
    assert told(case) == (UNKNOWN, UNKNOWN, UNKNOWN)
