"""A small hospital for tests: the service, Orthanc as its PACS, DCMTK's storescu as the sender."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.service.service_kit import free_port, wait_for

PATIENCE = 240.0  # seconds until a wait is given up; no measure of speed

PROPOSE = {
    ImplicitVRLittleEndian: [],
    ExplicitVRLittleEndian: [],
    JPEGBaseline8Bit: ["--propose-jpeg8"],
    JPEGLosslessSV1: ["--propose-lossless"],
    JPEG2000Lossless: ["--propose-j2k-lossless"],
    JPEG2000: ["--propose-j2k-lossy"],
    JPEGLSLossless: ["--propose-jls-lossless"],
    RLELossless: ["--propose-rle"],
}


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Orthanc:
    """Orthanc with an empty database; takes objects only from NEMT on this machine."""

    def __init__(self, program: str, folder: Path) -> None:
        self.dicom_port, self.http_port = free_port(), free_port()
        folder.mkdir()
        config = {
            "Name": "PACS",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "PACS",
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "DicomAlwaysAllowStore": False,
            "DicomModalities": {"nemt": ["NEMT", "127.0.0.1", 104]},
            "OverwriteInstances": True,
            "Plugins": [],
        }
        file = folder / "orthanc.json"
        file.write_text(json.dumps(config))
        self._log = (folder / "orthanc.log").open("wb")
        self._process = subprocess.Popen(
            [program, str(file)], stdout=self._log, stderr=subprocess.STDOUT
        )
        wait_for(lambda: is_open(self.http_port) and is_open(self.dicom_port), "Orthanc")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}") as answer:
            body: bytes = answer.read()
            return body

    def instances(self) -> list[str]:
        found: list[str] = json.loads(self.get("/instances"))
        return found

    def changes(self) -> int:
        """How many times an object has been stored, repeats included where they were new."""
        return sum(
            c["ChangeType"] == "NewInstance"
            for c in json.loads(self.get("/changes?limit=100000"))["Changes"]
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


@dataclass
class Service:
    """`nemt-dicom serve` as a process, to be killed and started again."""

    state: Path
    bundle: Path | None
    destinations: Sequence[dict[str, Any]]
    port: int = field(default_factory=free_port)
    extra: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("NEMT_")}
        env |= {
            "NEMT_STATE__DIR": str(self.state),
            "NEMT_LISTENER__PORT": str(self.port),
            "NEMT_LISTENER__MIN_FREE_MB": "0",
            "NEMT_DELIVERY__RETRY_FIRST_S": "0.2",
            "NEMT_DESTINATIONS": json.dumps(list(self.destinations)),
        }
        if self.bundle is not None:
            env["NEMT_EXPLANATION__BUNDLE"] = str(self.bundle)
        return env | self.extra

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs another command of `nemt-dicom` on the same state folder, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "nemt_dicom.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "serve.log").open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nemt_dicom.cli", "serve"],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return "listens on" in self.log()[before:]

        wait_for(ready, "the service", PATIENCE)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return (self.state / "serve.log").read_text(errors="replace")

    def jobs(self) -> list[dict[str, Any]]:
        done = self.run("jobs", "list", "--json")
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    def settled(self) -> list[dict[str, Any]]:
        """The jobs, once every one has ended and every delivery is done; else an empty list."""
        jobs = self.jobs()
        open_states = {"queued", "inferring"}
        waiting = [
            j
            for j in jobs
            if j["state"] in open_states or any(d["state"] == "pending" for d in j["deliveries"])
        ]
        return [] if waiting else jobs


@contextmanager
def site(
    tmp_path: Path, orthanc: str, bundle: Path | None, **extra: str
) -> Iterator[tuple[Orthanc, Service]]:
    """A running service that delivers to a running Orthanc."""
    pacs = Orthanc(orthanc, tmp_path / "orthanc")
    destination = {
        "kind": "dicom",
        "name": "pacs",
        "host": "127.0.0.1",
        "port": pacs.dicom_port,
        "ae_title": "PACS",
    }
    service = Service(tmp_path / "state", bundle, [destination], extra=extra)
    try:
        service.start()
        yield pacs, service
    finally:
        if service.process is not None and service.process.poll() is None:
            service.kill()
        pacs.stop()


def send(storescu: str, port: int, *files: Path) -> subprocess.CompletedProcess[str]:
    """Sends files one association a transfer syntax, as DCMTK's storescu does."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        meta = dcmread(file, force=True, stop_before_pixels=True).file_meta
        groups.setdefault(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian), []).append(file)
    for syntax, members in groups.items():
        command = [storescu, *PROPOSE[syntax], "-aec", "NEMT", "-aet", "MODALITY"]
        result = subprocess.run(
            [*command, "127.0.0.1", str(port), *map(str, members)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        if result.returncode != 0:
            return result
    return result
