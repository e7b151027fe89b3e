"""What every sender has in common: the answers of a destination and their meaning.

PS3.4 annex B (Storage Service Class), PS3.7 section 9.1.1 (C-STORE).
"""

import os
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from pydicom import Dataset

from nemt_dicom.log import escape
from nemt_dicom.state.records import Output

# PS3.4 table B.2-1 and PS3.7 annex C. A status in none of these says nothing of the object: the
# destination is out of resources, not configured for us, or at fault itself.
WARNINGS = frozenset({0x0001, 0x0107, 0x0116})
"""The object was stored, as with every status 0xBxxx."""
ALREADY_THERE = 0x0111
"""Duplicate SOP Instance. Ours have UIDs made from their content: it is the same object."""
FAULTS_OF_THE_OBJECT = frozenset({0x0105, 0x0106, 0x0115, 0x0117, 0x0119, 0x0120, 0x0121})
"""An attribute, a value or the SOP Instance is missing or wrong. 0xA9xx and 0xCxxx say the same."""
REFUSALS = {
    0x0110: "processing failure",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0213: "resource limitation",
}


class Answer(Enum):
    """The result of an attempt."""

    SENT = auto()
    LATER = auto()
    """Refused for now, or no answer: this output is tried later, after other outputs."""
    UNREACHABLE = auto()
    """No connection: the destination is tried later. It says nothing of the output."""
    REJECTED = auto()
    """The destination says of this output that sending it again unchanged does not help."""
    LOST = auto()
    """There is nothing to send: the bytes in our spool are missing or damaged."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer of a destination.

    answer: its meaning.
    status: its DIMSE status as `0x0000`; None if there is none.
    detail: its meaning in our words.
    comment: the words of the peer. They may name the patient: they are for the database and never
        for the log.
    """

    answer: Answer
    status: str | None = None
    detail: str | None = None
    comment: str | None = None


class Sender(Protocol):
    """Brings outputs to one destination."""

    def send(self, output: Output, data: bytes) -> Outcome:
        """Sends `data`, the bytes of the output, as they are. Raises nothing that a destination
        can cause.
        """

    def idle(self) -> None:
        """Called while there is nothing to send."""

    def close(self) -> None:
        """Ends the association, if one is open."""


def outcome_of(status: Dataset) -> Outcome:
    """The meaning of a C-STORE response. A dataset without a status: there was no response."""
    code = status.get("Status")
    if code is None:
        return Outcome(answer=Answer.LATER, detail="no answer")
    answer, detail = _meaning(code)
    comment = escape(str(status.get("ErrorComment") or "")) or None
    return Outcome(answer=answer, status=f"0x{code:04X}", detail=detail, comment=comment)


def _meaning(code: int) -> tuple[Answer, str | None]:
    if code == 0x0000:
        return Answer.SENT, None
    if code == ALREADY_THERE:
        return Answer.SENT, "it was there already"
    if code in WARNINGS or 0xB000 <= code <= 0xBFFF:
        return Answer.SENT, "with a warning"
    if 0xA900 <= code <= 0xA9FF:
        return Answer.REJECTED, "dataset does not match its SOP class"
    if code in FAULTS_OF_THE_OBJECT or 0xC000 <= code <= 0xCFFF:
        return Answer.REJECTED, "cannot understand the object"
    out_of_resources = 0xA700 <= code <= 0xA7FF
    return Answer.LATER, "out of resources" if out_of_resources else REFUSALS.get(code, "refused")


def reason_of(error: OSError) -> str:
    """An `OSError` without the names that its text holds."""
    return os.strerror(error.errno) if error.errno else type(error).__name__
