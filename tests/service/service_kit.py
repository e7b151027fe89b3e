"""What the tests of the service share: radiographs, a stand-in engine, a PACS, polling."""

import contextlib
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import AssociationSocket

from nemt_dicom.config import Settings
from nemt_dicom.errors import BadOutput, Reason, Refused
from nemt_dicom.state.records import Output

PATIENT = "ZZPHI^CANARY"


def _shutdown_socket(self: AssociationSocket) -> None:
    """Closes it: pynetdicom leaves the socket of a refused connection to the garbage collector,
    whenever that runs, and pytest then blames the test of that moment.
    """
    if self.socket is not None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


AssociationSocket._shutdown_socket = _shutdown_socket


def radiograph(
    *, behaviour: str = "", size: int = 16, uid: str | None = None, **changes: Any
) -> Dataset:
    """A small DX image. `behaviour` is what the stand-in engine does with it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = uid or generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientName = PATIENT
    dataset.Modality = "DX"
    dataset.SeriesDescription = behaviour
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = os.urandom(2 * size * size)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def encode(dataset: Dataset) -> bytes:
    """A dataset as a Part 10 file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


class StandInExplanation:
    def __init__(self, source: Dataset) -> None:
        self.source = source

    def summary(self) -> dict[str, Any]:
        return {"verdict": "explained", "probability": 0.5}


def dataset_of(data: bytes) -> bytes:
    """The dataset in a Part 10 file: what follows the file meta information."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


@dataclass
class StandInEngine:
    """Explains without a model. Its outputs have fixed UIDs but never the same bytes twice, so that
    a test sees at once when an output was made twice.
    """

    settings: Settings
    device: str = "stand-in"
    bundle: str = "stand-in 1"

    def read(self, data: bytes) -> Any:
        dataset = pydicom.dcmread(BytesIO(data))
        if dataset.SeriesDescription == "refuse":
            raise Refused(Reason.NOT_CHEST, "body part is not a chest")
        return dataset

    def explain(self, sources: Sequence[Any]) -> list[Any]:
        for source in sources:
            if source.SeriesDescription == "crash":
                os._exit(139)
            if source.SeriesDescription == "error":
                raise ValueError(PATIENT)
            if source.SeriesDescription == "bad":
                raise BadOutput("NaN")
        return [StandInExplanation(source) for source in sources]

    def build(
        self, source: Any, explanation: Any, *, digest: str, received: datetime
    ) -> Sequence[tuple[Output, bytes]]:
        return [self._output(source, kind) for kind in ("seg", "sc")]

    @staticmethod
    def _output(source: Dataset, kind: str) -> tuple[Output, bytes]:
        dataset = radiograph()
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.SOPInstanceUID = output_uid(source.SOPInstanceUID, kind)
        dataset.StudyInstanceUID = source.StudyInstanceUID
        dataset.SeriesDescription = kind
        implicit = kind == "sc"
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
        data = encode(dataset)
        output = Output(
            kind=kind,
            sop_class_uid=dataset.SOPClassUID,
            sop_instance_uid=dataset.SOPInstanceUID,
            study_instance_uid=dataset.StudyInstanceUID,
            transfer_syntax_uid=syntax,
            blob=hashlib.sha256(data).hexdigest(),
        )
        return output, data


def output_uid(source_uid: str, kind: str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{source_uid} {kind}').int}"


@dataclass
class Pacs:
    """A storage SCP. `answer` gives the status for an instance; what it accepts is in `received`:
    the digests of every content seen for each UID.
    """

    port: int
    answer: Callable[[str], int] = lambda _uid: 0x0000
    comment: str | None = None
    received: dict[str, list[str]] = field(default_factory=dict)
    associations: int = 0
    lock: Any = field(default_factory=threading.Lock)
    ae: Any = None

    @contextlib.contextmanager
    def running(self, syntaxes: Sequence[str] | None = None) -> Iterator["Pacs"]:
        ae = AE(ae_title="PACS")
        default = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]
        ae.add_supported_context(SecondaryCaptureImageStorage, list(syntaxes or default))
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count)]
        self.ae = ae
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield self
        finally:
            ae.shutdown()
            server.server_close()

    def accept_title(self, *calling: str) -> None:
        """Rejects associations of other calling AE titles."""
        self.ae.require_calling_aet = list(calling)

    def open_associations(self) -> list[Association]:
        return list(self.ae.active_associations)

    def abort_all(self) -> None:
        for association in self.open_associations():
            association.abort()

    def _count(self, _event: evt.Event) -> None:
        self.associations += 1

    def _store(self, event: evt.Event) -> Dataset:
        uid = str(event.request.AffectedSOPInstanceUID)
        status = self.answer(uid)
        if status in (0x0000, 0xB000, 0xB006, 0xB007):
            data = event.encoded_dataset(include_meta=False)
            with self.lock:
                self.received.setdefault(uid, []).append(hashlib.sha256(data).hexdigest())
        response = Dataset()
        response.Status = status
        if self.comment is not None:
            response.ErrorComment = self.comment
        return response


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Waits until `condition` gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


@contextlib.contextmanager
def associate(settings: Settings, *datasets: Dataset, **changes: Any) -> Iterator[Association]:
    """An association with the listener that can carry `datasets`."""
    ae = AE(ae_title=changes.get("calling", "SENDER"))
    pairs = {(str(d.SOPClassUID), str(d.file_meta.TransferSyntaxUID)) for d in datasets}
    for sop_class, syntax in sorted(pairs):
        ae.add_requested_context(sop_class, syntax)
    listener = settings.listener
    association = ae.associate(
        listener.host, listener.port, ae_title=changes.get("called", listener.ae_title)
    )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def send(settings: Settings, *datasets: Dataset) -> list[int | None]:
    """Sends datasets over one association; their statuses, None where no answer came."""
    with associate(settings, *datasets) as association:
        if not association.is_established:
            return [None] * len(datasets)
        statuses: list[int | None] = []
        for dataset in datasets:
            try:
                statuses.append(association.send_c_store(dataset).get("Status"))
            except (RuntimeError, ValueError, OSError):
                statuses.append(None)
        return statuses


@contextlib.contextmanager
def any_uid_goes() -> Iterator[None]:
    """Lets pynetdicom send and read UIDs that are not valid."""
    check = _config.VALIDATORS["UI"]
    _config.VALIDATORS["UI"] = lambda _uid: (True, "")
    try:
        yield
    finally:
        _config.VALIDATORS["UI"] = check


def begin_raw(
    association: Association,
    dataset: Dataset,
    *,
    sop_class: str | None = None,
    sop_instance: str | None = None,
    data: bytes | None = None,
    fragments: int | None = None,
) -> None:
    """Begins a C-STORE without asking whether command or dataset make sense; with `fragments`, of
    16 kB, only so many are sent.
    """
    if data is None:
        data = dataset_of(encode(dataset))
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = sop_class or dataset.SOPClassUID
    request.AffectedSOPInstanceUID = sop_instance or dataset.SOPInstanceUID
    request.DataSet = BytesIO(data)
    association._reactor_checkpoint.clear()
    wait_for(lambda: association._is_paused, "the association to pause")
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    context = association.accepted_contexts[0].context_id
    for part in list(message.encode_msg(context, 16384))[:fragments]:
        association.dul.send_pdu(part)


def send_raw(settings: Settings, dataset: Dataset, **changes: Any) -> Dataset:
    """A C-STORE as `begin_raw` makes it; returns its answer."""
    with any_uid_goes(), associate(settings, dataset) as association:
        begin_raw(association, dataset, **changes)
        _, response = association.dimse.get_msg(block=True)
        association._reactor_checkpoint.set()
        answer: Dataset = association._check_received_status(response)
        return answer
