"""Writes outputs as files into a folder."""

from nemt_dicom.config import FolderDestination
from nemt_dicom.files import Fs, write_whole
from nemt_dicom.intake.uid import valid_uid
from nemt_dicom.service.sender import Answer, Outcome, reason_of
from nemt_dicom.state.records import Output


class FolderSender:
    """Writes `<StudyInstanceUID>/<SOPInstanceUID>.dcm`; a file with that ending is complete."""

    def __init__(
        self, destination: FolderDestination, *, make: bool = False, fs: Fs | None = None
    ) -> None:
        """`make`: a missing folder is made. Without it, a missing folder is a fault: it may be a
        share that is not mounted, and files written in its place would never arrive.
        """
        self._root = destination.path
        self._make = make
        self._fs = fs or Fs()

    def send(self, output: Output, data: bytes) -> Outcome:
        # They become part of a path.
        if not (valid_uid(output.study_instance_uid) and valid_uid(output.sop_instance_uid)):
            return Outcome(answer=Answer.REJECTED, detail="invalid UID")
        try:
            fault = self._fault()
        except OSError as error:
            fault = reason_of(error)
        if fault is not None:
            return Outcome(answer=Answer.UNREACHABLE, detail=f"folder {self._root} {fault}")
        folder = self._root / output.study_instance_uid
        try:
            if not folder.is_dir():
                self._fs.mkdir(folder, 0o777)
                self._fs.fsync(self._root)
            write_whole(folder / f"{output.sop_instance_uid}.dcm", data, fs=self._fs)
        except OSError as error:  # of the disk or of this output: other outputs go on
            return Outcome(answer=Answer.LATER, detail=reason_of(error))
        return Outcome(answer=Answer.SENT)

    def _fault(self) -> str | None:
        """Why nothing can be written; None if it can. Raises `OSError` if that is unknown."""
        if self._make:
            self._fs.mkdir(self._root)
        if self._root.is_dir():
            return None
        return "is not a folder" if self._root.exists() else "does not exist; is it mounted?"

    def idle(self) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        """Nothing is kept open."""
