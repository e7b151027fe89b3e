"""A child process that cannot outlive its parent.

The parent starts a fresh interpreter: nothing is forked, nothing but two pipes is inherited. The
work, a picklable callable, comes through standard input, which then stays open: its end of file,
and on Linux a signal of the kernel, tell that the parent is gone. The child reports through the
other pipe, a line each, that it is ready, and why it could not be or could not go on.
"""

import contextlib
import ctypes
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from nemt_dicom.config import Settings
from nemt_dicom.errors import NemtError
from nemt_dicom.log import configure_logging, describe_error
from nemt_dicom.state.spool import hold_as_child

LOGGER = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
_CODE = """
import sys
sys.path[:] = {path!r}
from nemt_dicom.service.child import main
main({handle})
"""


@dataclass(frozen=True)
class Life:
    """The ties between the work of a child and its parent.

    stop: set when the work must end.
    ready: tells the parent that the work has begun, with facts for its report.
    """

    stop: threading.Event
    ready: Callable[[dict[str, Any]], None]


Work = Callable[[Settings, Life], None]
"""The work of a child. It returns after `stop` is set. A `NemtError` that it raises is reported."""


@dataclass(frozen=True)
class Report:
    """The words of a child so far.

    ready: its facts, once it is ready; None before.
    failure: why it failed; None if it did not.
    kind: name of the class in errors.py that it failed with.
    """

    ready: dict[str, Any] | None = None
    failure: str | None = None
    kind: str = "NemtError"


@dataclass
class Child:
    """The parent's view of one child process.

    On Linux the kernel ends the child when the *thread* that started it ends, so `start` belongs to
    a thread that lives as long as the service.
    """

    name: str
    settings: Settings
    report: Report | None = None
    _process: subprocess.Popen[bytes] | None = None
    _reports: int | None = None
    _unread: bytes = b""

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, work: Work) -> None:
        """Starts a fresh process that runs `work`.

        Raises `OSError` if there is no memory or no process to be had. Raises the error of pickle
        if `work` cannot be pickled. No process is left then.
        """
        message = pickle.dumps((os.getpid(), self.settings, work))
        read, write = os.pipe()
        code = _CODE.format(path=sys.path, handle=write)
        self.close()
        self.report, self._unread = None, b""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, f"nemt-dicom-{self.name}"],
                stdin=subprocess.PIPE,
                pass_fds=(write,),
                process_group=0,  # a terminal's Ctrl-C is for the parent, which stops its children
            )
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        os.set_blocking(read, False)
        self._reports = read
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the caller will see
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def poll(self) -> int | None:
        """Reads what has been reported; returns the exit code once the process has ended."""
        assert self._process is not None, "not started"
        code = self._process.poll()
        if self._reports is not None:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(self._reports, 4096):
                    self._unread += part
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                self.report = replace(self.report or Report(), **json.loads(line))
        return code

    def terminate(self) -> None:
        """Asks the process to end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process now and waits until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Closes the pipes of a process that has ended."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._reports is not None:
            os.close(self._reports)
            self._reports = None


def main(handle: int) -> NoReturn:
    """Runs in the child. `handle` takes the reports."""
    os.set_inheritable(handle, False)
    stop = _stop_event()
    parent, settings, work = pickle.load(sys.stdin.buffer)  # noqa: S301 (our own parent's)
    _die_with(parent)
    hold_as_child(settings.state.dir)
    configure_logging(settings.log.level)
    threading.excepthook = lambda args: _log_end("thread", args.exc_value)

    def report(**values: Any) -> None:
        os.write(handle, json.dumps(values).encode() + b"\n")

    code = 1
    try:
        work(settings, Life(stop=stop, ready=lambda values: report(ready=values)))
        code = 0
    except NemtError as error:
        report(failure=str(error)[:2000], kind=type(error).__name__)
    finally:
        if code != 0:
            _log_end("process", sys.exception())
        logging.shutdown()
        os._exit(code)  # not even a connection that stays open can delay the end


def _log_end(what: str, error: BaseException | None) -> None:
    if error is not None:
        LOGGER.error("%s ends: %s", what, describe_error(error))


def _stop_event() -> threading.Event:
    """An event that SIGTERM sets. Call it before any other thread exists.

    A thread waits for the signal: a handler that sets an event can meet the main thread inside that
    event's own lock, and then neither goes on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    stop = threading.Event()

    def watch() -> None:
        signal.sigwait({signal.SIGTERM})
        stop.set()

    threading.Thread(target=watch, name="signals", daemon=True).start()
    return stop


def _die_with(parent: int) -> None:
    """Ends this process when its parent is gone, at once if it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns at the end of file, for nothing more is sent
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
