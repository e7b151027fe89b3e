"""Log entries: their description of an error, and no patient data."""

import errno
import logging
import os
from collections.abc import Iterator

import pytest

from nemt_dicom.log import configure_logging, describe_error

PATIENT = "Doe^Jane"


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before, level
    logging.captureWarnings(capture=False)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        return caught


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", ["pydicom", "pynetdicom.acse", "highdicom", "py.warnings"])
def test_warnings_of_libraries_are_not_logged(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug")
    logging.getLogger(name).setLevel(logging.DEBUG)  # as the library does when it is imported
    logging.getLogger(name).warning("bad value %s", PATIENT)
    logging.getLogger("nemt_dicom.service.worker").warning("our own")
    text = capfd.readouterr().err
    assert PATIENT not in text
    assert text.endswith("warning worker: our own\n")


def test_an_error_is_logged_as_type_and_place() -> None:
    text = describe_error(raised(ValueError(f"bad value {PATIENT}")))
    assert PATIENT not in text
    assert text.startswith("ValueError at test_log.py:")


def test_an_error_of_the_system_is_logged_with_its_message() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"/spool/{PATIENT}")
    text = describe_error(raised(full))
    assert text.startswith("OSError (No space left on device) at test_log.py:")
    assert PATIENT not in text
