"""`nemt-dicom demo`: runs the real service with a small PACS, all on this machine.

Three parties use free loopback ports:
- the service, as `nemt-dicom serve` runs it,
- the PACS: a storage SCP in this process that receives the outputs,
- a storage SCU in this process that sends the radiographs.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from nemt_dicom.errors import NemtError
from nemt_dicom.files import write_whole
from nemt_dicom.intake.uid import UNREADABLE
from nemt_dicom.outputs.secondary_capture import as_png
from nemt_dicom.state.records import DeliveryState, Instance, InstanceState
from nemt_dicom.state.store import Store

DEMO_FILE = "RG1_UNCR.dcm"
"""A real chest radiograph in the PyPI package pydicom-data: 1955 x 1841, 15 bit, MONOCHROME1."""

Report = Callable[[str, int, int], None]
"""A progress callback. Arguments: the current step, the number of steps done, and of all steps."""

ENDED = {InstanceState.DEAD, InstanceState.REFUSED, InstanceState.CONFLICT}
"""States in which an instance has no outputs and gets none."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The result of one file.

    name: file name of the radiograph.
    instance: the instance in the database of the service.
    files: files written: two DICOM objects and a PNG picture; none if the instance was refused.
    send_seconds: duration of the C-STORE.
    seconds: time from the start of the C-STORE to the arrival of the last output.
    """

    name: str
    instance: Instance
    files: tuple[Path, ...]
    send_seconds: float
    seconds: float

    def rows(self) -> Iterator[tuple[str, str]]:
        """Labels and values for a table."""
        summary = self.instance.summary
        if summary is None:
            yield "state", f"{self.instance.state.value}: {self.instance.reason}"
            return
        yield "verdict", str(summary["verdict"])
        threshold = float(summary["decision_threshold"])
        p = float(summary["probability"])
        side = "below" if p < threshold else "at or above"
        yield "probability", f"{p:.3f}, {side} the decision threshold {threshold:.3f}"
        yield "segment occluded", f"{summary['probability_occluded']:.3f}"
        yield "only the segment", f"{summary['probability_kept']:.3f}"
        margin = f"the evidence margin is {summary['evidence_margin']:.3f}"
        yield "evidence", f"p falls by {summary['fall']:.3f}; {margin}"
        yield "time: C-STORE", f"{1000 * self.send_seconds:.0f} ms"
        for key, value in summary.items():
            if key.endswith("_ms"):
                yield f"time: {key.removesuffix('_ms').replace('_', ' ')}", f"{value:.0f} ms"
        yield "time: sent to all back", f"{1000 * self.seconds:.0f} ms"
        for file in self.files:  # NAME.seg.dcm, NAME.sc.dcm, NAME.png
            yield file.name.removesuffix(".dcm").rpartition(".")[2], str(file)


class Pacs:
    """A storage SCP. It keeps the received objects in memory."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._objects: dict[str, list[bytes]] = {}
        ae = AE(ae_title="DEMOPACS")
        for sop_class in (SegmentationStorage, SecondaryCaptureImageStorage):
            ae.add_supported_context(
                sop_class, [ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless]
            )
        self._server: Any = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._on_store)]
        )
        self.port: int = self._server.server_address[1]

    def _on_store(self, event: evt.Event) -> int:
        data = event.encoded_dataset()
        source = dcmread(BytesIO(data), stop_before_pixels=True).SourceImageSequence[0]
        with self._arrived:
            self._objects.setdefault(str(source.ReferencedSOPInstanceUID), []).append(data)
            self._arrived.notify_all()
        return 0x0000

    def objects(self, source_uid: str, count: int, patience: float) -> list[bytes]:
        """Encoded datasets that were derived from one image.

        Waits until `count` objects have arrived, at most `patience` seconds.
        """
        with self._arrived:
            self._arrived.wait_for(
                lambda: len(self._objects.get(source_uid, [])) >= count, patience
            )
            return list(self._objects.get(source_uid, []))

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()


def run_demo(
    files: Mapping[str, Path], out: Path, bundle: Path | None, report: Report
) -> list[DemoResult]:
    """Starts a service, sends it each file and writes the outputs to the folder `out`.

    files: DICOM files by the name that their outputs get.
    bundle: folder of the model bundle; None for the bundle that comes with the package.

    Raises `NemtError` if the service does not start or ends early, if a file cannot be read or
    sent, or if an output cannot be delivered.
    """
    datasets = [_read(file) for file in files.values()]
    total = 1 + 2 * len(files)
    report("starting the service", 0, total)
    pacs = Pacs()
    results = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="nemt-demo-") as folder,
            _service(Path(folder), pacs.port, bundle) as service,
        ):
            for number, ((name, file), dataset) in enumerate(
                zip(files.items(), datasets, strict=True)
            ):
                report(f"sending {file.name}", 1 + 2 * number, total)
                started = time.monotonic()
                _send(dataset, service.port)
                sent = time.monotonic()
                report(f"explaining {file.name}", 2 + 2 * number, total)
                instance, objects = _await(str(dataset.SOPInstanceUID), pacs, service)
                finished = time.monotonic()
                results.append(
                    DemoResult(
                        name=file.name,
                        instance=instance,
                        files=tuple(_write(objects, out, name)),
                        send_seconds=sent - started,
                        seconds=finished - started,
                    )
                )
            report("stopping the service", total, total)
    finally:
        pacs.stop()
    return results


def demo_file() -> Path:
    """The radiograph in the package pydicom-data. Raises `NemtError` if it is missing."""
    path = get_testdata_file(DEMO_FILE, download=False)
    if path is None:
        raise NemtError(f"{DEMO_FILE} is missing: install the package pydicom-data, or name a file")
    return Path(str(path))


def _read(file: Path) -> Dataset:
    try:
        with disable_value_validation():
            dataset = dcmread(file, force=True)
            whole = all(dataset.get(keyword) for keyword in ("SOPInstanceUID", "SOPClassUID"))
    except OSError as error:
        raise NemtError(f"{file}: {error.strerror}") from error
    except UNREADABLE as error:
        kind = type(error).__name__
        raise NemtError(f"{file} is not a DICOM file, or is damaged ({kind})") from error
    if not whole:
        raise NemtError(f"{file} is not a DICOM image")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


@dataclass(frozen=True, kw_only=True)
class _Service:
    """A running `nemt-dicom serve`."""

    port: int
    state: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        return self.state / "serve.log"

    def require_alive(self) -> None:
        if self.process.poll() is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip()
            raise NemtError(f"the service ended with exit code {self.process.returncode}:\n{lines}")


@contextmanager
def _service(folder: Path, pacs_port: int, bundle: Path | None) -> Iterator[_Service]:
    """Starts the service, waits until it answers C-ECHO, and ends it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    destination = {
        "kind": "dicom",
        "name": "pacs",
        "host": "127.0.0.1",
        "port": pacs_port,
        "ae_title": "DEMOPACS",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NEMT_")}
    environment |= {
        "NEMT_STATE__DIR": str(folder),
        "NEMT_LISTENER__PORT": str(port),
        "NEMT_LISTENER__MIN_FREE_MB": "0",
        "NEMT_DELIVERY__MAX_REJECTIONS": "1",  # the user sees a rejection at once
        "NEMT_EXPLANATION__EXPLAIN_BELOW_THRESHOLD": "true",
        "NEMT_DESTINATIONS": json.dumps([destination]),
    }
    if bundle is not None:
        environment["NEMT_EXPLANATION__BUNDLE"] = str(bundle.resolve())
    with (folder / "serve.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nemt_dicom.cli", "serve"], env=environment, stderr=output
        )
    service = _Service(port=port, state=folder, process=process)
    try:
        while not _answers(port):
            service.require_alive()
            time.sleep(0.1)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    """Whether the service on this port answers C-ECHO with success."""
    ae = AE(ae_title="DEMO")
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", port, ae_title="NEMT")
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status and status.Status == 0x0000)


def _send(dataset: Dataset, port: int) -> None:
    ae = AE(ae_title="DEMO")
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title="NEMT")
    if not association.is_established or not association.accepted_contexts:
        raise NemtError("the service does not accept this SOP class or transfer syntax")
    status = association.send_c_store(dataset)
    association.release()
    if not status or status.Status != 0x0000:
        code = f"0x{status.Status:04X}" if status else "no answer"
        raise NemtError(f"C-STORE failed ({code}): {status.get('ErrorComment', '')}")


def _await(sop_instance_uid: str, pacs: Pacs, service: _Service) -> tuple[Instance, list[bytes]]:
    """Waits until both objects are at the PACS, or the instance has ended without outputs.

    Raises `NemtError` if the service has ended, or if an output is a dead letter.
    """
    while True:
        objects = pacs.objects(sop_instance_uid, 2, patience=0.2)
        store = Store(service.state, read_only=True)
        try:
            *_, instance = store.instances(sop_instance_uid=sop_instance_uid)
        finally:
            store.close()
        if instance.state in ENDED:
            return instance, []
        if len(objects) >= 2:
            return instance, objects
        for delivery in instance.deliveries:
            if delivery.state is DeliveryState.DEAD:
                raise NemtError(f"the {delivery.kind} could not be delivered: {delivery.detail}")
        service.require_alive()


def _write(objects: Sequence[bytes], out: Path, stem: str) -> Iterator[Path]:
    """Writes STEM.seg.dcm, STEM.sc.dcm and STEM.png, and yields their paths.

    Raises `NemtError` if the disk is full or the folder cannot be written.
    """
    for data in objects:
        is_sc = dcmread(BytesIO(data), stop_before_pixels=True).Modality == "OT"
        files = {out / f"{stem}.{'sc' if is_sc else 'seg'}.dcm": data}
        if is_sc:
            files[out / f"{stem}.png"] = as_png(data)
        for path, content in files.items():
            try:
                write_whole(path, content)
            except OSError as error:
                raise NemtError(f"{path} cannot be written: {error.strerror}") from error
            yield path
