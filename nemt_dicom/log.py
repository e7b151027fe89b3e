"""Log entries: one line each, without control characters, without patient data.

An instance is named by a short hash of its SOP Instance UID. An exception is logged by its type and
place, an `OSError` also by the message of the system. The text of an exception is never logged,
because it may quote the dataset.
"""

import hashlib
import logging
import re
import sys
import traceback
from datetime import UTC, datetime

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    r"""`text` with each control character and line end written as `\xNN`."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", text)


def instance_name(sop_instance_uid: str) -> str:
    """The name of an instance in the log: 12 hexadecimal digits."""
    return hashlib.sha256(sop_instance_uid.encode("utf-8", "replace")).hexdigest()[:12]


def describe_error(error: BaseException) -> str:
    """Type and place of an exception without its text. The innermost call comes first."""
    description = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        description += f" ({error.strerror})"
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames)]
    return f"{description} at {' < '.join(places)}" if places else description


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000+00:00 info listener: text`, always a single line."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        # Some libraries pass an exception as the message: its text may hold patient data.
        if isinstance(record.msg, BaseException):
            text = describe_error(record.msg)
        else:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f" ({describe_error(record.exc_info[1])})"
        source = record.name.rpartition(".")[2] if _is_ours(record) else record.name
        return f"{when} {record.levelname.lower()} {source}: {escape(text)}"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith("nemt_dicom.")


def _is_safe(record: logging.LogRecord) -> bool:
    """False for warnings of libraries that may quote the received dataset.

    This is a filter for each record: these libraries set the levels of their loggers at import.
    """
    quotes = record.name.split(".")[0] in {"pydicom", "pynetdicom", "py", "highdicom"}
    return not quotes or record.levelno >= logging.ERROR


def configure_logging(level: str) -> None:
    """Sends the log of this process to standard error.

    level: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(_is_safe)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("nemt_dicom").setLevel(level.upper())
    logging.captureWarnings(capture=True)
