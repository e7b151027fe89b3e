"""The settings: one frozen model for each section of `nemt-dicom.toml`.

A section is handed to the code that needs it. Nothing reads settings from a global. Import these
names from `nemt_dicom.config`, which also loads them.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _ae_title(value: str) -> str:
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", value) or value != value.strip():
        raise ValueError("1 to 16 printable ASCII characters, no backslash, no outer spaces (AE)")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        try:
            encoded = value.encode("idna")
        except UnicodeError:
            encoded = b""
        if not re.fullmatch(rb"[A-Za-z0-9_.-]+", encoded):
            raise ValueError("a host name or an IP address") from None
    return value


UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path that may begin with `~`, the user's home."""
AETitle = Annotated[str, AfterValidator(_ae_title)]
"""An AE title (PS3.5 section 6.2, VR AE)."""
Host = Annotated[str, AfterValidator(_host)]
"""A host name or an IP address."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""
Seconds = Annotated[float, Field(gt=0, le=3600)]
"""A time in seconds."""
DestinationName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
"""The name of a destination in the log and in the database."""


class Section(BaseModel):
    """A frozen group of settings. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_truth_values(cls, table: Any) -> Any:
        """Refuses true and false for a key that is not bool: pydantic would read 1 and 0."""
        for key, value in table.items() if isinstance(table, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{key} = {value}: true and false are not allowed here")
        return table


class ListenerSettings(Section):
    """Where the service listens, and who may send to it."""

    host: Host = "127.0.0.1"
    port: Port = 11112
    ae_title: AETitle = "NEMT"
    allowed_calling_ae_titles: tuple[AETitle, ...] = ()
    """AE titles of the senders. Empty: any sender, allowed only if `host` is a loopback address."""
    max_associations: Annotated[int, Field(ge=1, le=200)] = 16
    max_associations_per_address: Annotated[int, Field(ge=1, le=200)] = 12
    """Connections from one IP address. Set it below `max_associations`: otherwise one peer can use
    all associations.
    """
    max_pdu: Annotated[int, Field(ge=4096, le=1048576)] = 131072
    """Longest PDU that the service accepts, in bytes."""
    max_object_mb: Annotated[int, Field(ge=1, le=2048)] = 512
    """Largest object that the service accepts, in megabytes."""
    acse_timeout_s: Seconds = 30
    """Longest wait for a message that opens or closes an association."""
    dimse_timeout_s: Seconds = 30
    """Longest wait for an expected DIMSE message."""
    network_timeout_s: Seconds = 60
    """An association without any message is aborted after this time."""
    pdu_timeout_s: Seconds = 15
    """Longest time from the first byte of a PDU to its last byte."""
    min_free_mb: Annotated[int, Field(ge=0)] = 1024
    """If the state folder has less free space, C-STORE answers 0xA700. Unit: megabytes."""

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> "ListenerSettings":
        if not _is_loopback(self.host) and not self.allowed_calling_ae_titles:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines: list the senders in "
                "allowed_calling_ae_titles"
            )
        return self


class InputSettings(Section):
    """Which radiographs are explained. deploy/conformance.md lists the rules that are fixed."""

    accept_for_processing: bool = False
    """Whether DX images For Processing are explained."""
    min_age_years: Annotated[float, Field(ge=0, le=150)] | None = None
    """Younger patients are refused. None: no limit. An unknown age is never refused."""
    refuse_burned_in: bool = False
    """Whether images with BurnedInAnnotation YES are refused."""
    max_megapixels: Annotated[float, Field(gt=0, le=400)] = 100
    """Larger images are refused. Unit: one million pixels."""


class ExplanationSettings(Section):
    """How the model runs, and when its explanation is drawn."""

    bundle: UserPath | None = None
    """Folder of the model bundle. None: the bundle that comes with the package."""
    explain_below_threshold: bool = False
    """Whether the mask is drawn even if the probability is below the decision threshold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model. "auto": the GPU if there is one, otherwise the CPU."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """CPU threads of the model. 0: torch chooses."""
    max_batch: Annotated[int, Field(ge=1, le=256)] = 8
    """Most images in one forward pass."""


class PlaneGeometry(StrEnum):
    """Which plane geometry a Segmentation has; see deploy/conformance.md."""

    AUTO = "auto"
    NONE = "none"


class OutputSettings(Section):
    """The form of the Segmentation (SEG) and the Secondary Capture (SC)."""

    seg_plane_geometry: PlaneGeometry = PlaneGeometry.AUTO
    seg_fractional: bool = False
    """Whether the mask is also written as a FRACTIONAL Segmentation, in a separate series."""
    sc_longest_side: Annotated[int, Field(ge=512, le=4096)] = 1024
    """Longest side of the radiograph in the Secondary Capture, in pixels."""
    sc_jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 92


class DicomDestination(Section):
    """A DICOM node that gets the outputs by C-STORE."""

    kind: Literal["dicom"]
    name: DestinationName
    host: Host
    port: Port
    ae_title: AETitle
    calling_ae_title: AETitle = "NEMT"


class FolderDestination(Section):
    """A folder that gets the outputs, as `<StudyInstanceUID>/<SOPInstanceUID>.dcm`.

    The folder must exist. If it is missing, the service takes it for a share that is not mounted,
    and waits.
    """

    kind: Literal["folder"]
    name: DestinationName
    path: UserPath


Destination = Annotated[DicomDestination | FolderDestination, Field(discriminator="kind")]


class DeliverySettings(Section):
    """How outputs are sent. Only a rejection of the object itself can end the attempts."""

    connect_timeout_s: Seconds = 10
    dimse_timeout_s: Seconds = 30
    idle_close_s: Seconds = 10
    """An association without outputs to send is closed after this time."""
    retry_first_s: Seconds = 5
    """Pause after the first failure. It grows with each further failure."""
    retry_longest_s: Seconds = 300
    """Longest pause between two attempts."""
    max_rejections: Annotated[int, Field(ge=1, le=100)] = 10
    """Rejections that make an object a dead letter. The pause after each rejection but the first is
    `retry_longest_s`, so an outage of a few minutes cannot make a dead letter.
    """


def default_state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The user's state directory (XDG Base Directory Specification: XDG_STATE_HOME)."""
    base = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "nemt-dicom"


class StateSettings(Section):
    """Where the service keeps its files."""

    dir: UserPath = Field(default_factory=default_state_dir)
    """The state folder: database, spool and lock."""


class LogSettings(Section):
    """What is written to the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """The whole configuration."""

    state: StateSettings = StateSettings()
    listener: ListenerSettings = ListenerSettings()
    input: InputSettings = InputSettings()
    explanation: ExplanationSettings = ExplanationSettings()
    output: OutputSettings = OutputSettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: tuple[Destination, ...] = ()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Settings":
        names = [d.name for d in self.destinations]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"destination names must differ; given twice: {', '.join(twice)}")
        return self

    def resolved_destinations(self) -> tuple[DicomDestination | FolderDestination, ...]:
        """The configured destinations; never empty.

        If none is configured, it is the folder `results` in the state folder.
        """
        if self.destinations:
            return self.destinations
        return (FolderDestination(kind="folder", name="results", path=self.own_results),)

    @property
    def own_results(self) -> Path:
        """The folder for results in the state folder. The service makes this folder itself."""
        return self.state.dir / "results"
