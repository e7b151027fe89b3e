"""Bytes from the network: PDUs in time, datasets into files.

Both take the place of parts of pynetdicom that let a peer or a full disk stop the service.
"""

import contextlib
import errno
import os
import socket
import time
import uuid
from typing import BinaryIO

from nemt_dicom.state.spool import Spool

CHUNK = 1 << 16  # bytes
LONGEST_PDU = 1 << 21  # bytes; far over what is negotiated, far under what a header can claim


class PduReader:
    """Reads from a connection as pynetdicom does: the 6 bytes of a PDU's header, then its rest.

    Header and rest together must be there within `seconds`, however steadily they drip in.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._deadline: float | None = None  # of the PDU whose header has been read

    def __call__(self, count: int) -> bytearray:
        """The next `count` bytes, fewer if the peer has closed. Raises `OSError` otherwise."""
        if count > LONGEST_PDU:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        is_header = self._deadline is None
        deadline = time.monotonic() + self._seconds if self._deadline is None else self._deadline
        self._deadline = deadline if is_header else None
        patience = self._connection.gettimeout()
        try:
            return self._read(count, deadline)
        finally:
            self._connection.settimeout(patience)  # it holds for sending too

    def _read(self, count: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the PDU is not whole in time")
            self._connection.settimeout(left)
            part = self._connection.recv(min(CHUNK, count - len(data)))
            if not part:
                break
            data += part
        return data


class IncomingFile:
    """A dataset on its way into a file of the spool's tmp, with the methods pynetdicom calls.

    Writing raises nothing, because an error would end the association without an answer. Instead
    `error` holds it, the file is removed, and the rest of the dataset is ignored. The file is also
    removed when this object is closed or forgotten, unless it was moved away before.
    """

    def __init__(self, spool: Spool, *, min_free: int) -> None:
        """Looks for `min_free` bytes of free space first."""
        self.error: OSError | None = None
        self._path = spool.tmp / f"{uuid.uuid4().hex}.dcm"
        self._size = 0
        self._output: BinaryIO | None = None
        try:
            if spool.free_bytes() < min_free:
                raise OSError(errno.ENOSPC, "too little free space in the state folder")
            spool.tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._output = os.fdopen(handle, "wb")
        except OSError as error:
            self._fail(error)

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def file(self) -> "IncomingFile":
        """The object whose `flush` pynetdicom calls."""
        return self

    def tell(self) -> int:
        """The number of bytes that have arrived, written or not."""
        return self._size

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._output is not None:
            try:
                self._output.write(data)
            except OSError as error:
                self._fail(error)

    def flush(self) -> None:
        if self._output is not None:
            try:
                self._output.flush()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Closes and removes the file. It may have been moved away."""
        output, self._output = self._output, None
        if output is not None:
            with contextlib.suppress(OSError):
                output.close()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def __del__(self) -> None:
        self.close()

    def _fail(self, error: OSError) -> None:
        self.error = error
        self.close()
