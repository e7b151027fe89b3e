"""Settings: embedded defaults < `nemt-dicom.toml` < `NEMT_SECTION__KEY` < command line.

Every section is a frozen value that is handed to the code that needs it; nothing reads settings
from a global. Unknown sections, unknown keys and bad values raise `ConfigError`, which names the
key, the value and what is allowed.
"""

import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from nemt_dicom.errors import ConfigError

ENV_PREFIX = "NEMT_"
ENV_IGNORED = frozenset({"NEMT_TEST_DATA", "NEMT_CACHE"})
"""Names that share the prefix and are no setting: of the tests, and of the trainer."""


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
AETitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, table: Any) -> Any:
        for key, value in table.items() if isinstance(table, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{key} = {value}: true and false are not allowed here")
        return table


class ListenerSettings(Section):
    """Who may send, and where the service listens."""

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Port = 11112
    ae_title: AETitle = "NEMT"
    allowed_calling_ae_titles: tuple[AETitle, ...] = ()
    """Empty: any, and then only on a loopback address."""
    max_associations: Annotated[int, Field(ge=1, le=200)] = 16
    max_associations_per_address: Annotated[int, Field(ge=1, le=200)] = 12
    """Connections from one IP address; fewer than `max_associations`, or one peer can take all."""
    max_pdu: Annotated[int, Field(ge=4096, le=1048576)] = 131072
    max_object_mb: Annotated[int, Field(ge=1, le=2048)] = 512
    acse_timeout_s: Seconds = 30
    dimse_timeout_s: Seconds = 30
    network_timeout_s: Seconds = 60
    pdu_timeout_s: Seconds = 15
    """Within this a PDU must be whole, from its first byte to its last."""
    min_free_mb: Annotated[int, Field(ge=0)] = 1024
    """Below this much free space in the state folder, C-STORE answers 0xA700."""

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> "ListenerSettings":
        if not _is_loopback(self.host) and not self.allowed_calling_ae_titles:
            raise ValueError(
                f"host {self.host!r} is reachable from other machines: list the senders in "
                "allowed_calling_ae_titles"
            )
        return self


class InputSettings(Section):
    """Which radiographs are explained. What is not in here is fixed; see deploy/conformance.md."""

    accept_for_processing: bool = False
    min_age_years: Annotated[float, Field(ge=0, le=150)] | None = None
    refuse_burned_in: bool = False
    max_megapixels: Annotated[float, Field(gt=0, le=400)] = 100


class ExplanationSettings(Section):
    """When an explanation is drawn."""

    bundle: UserPath | None = None
    """Folder of the model bundle; None is the bundle that ships."""
    explain_below_threshold: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """CPU threads of the model; 0 leaves the choice to torch."""
    max_batch: Annotated[int, Field(ge=1, le=256)] = 8


class PlaneGeometry(StrEnum):
    AUTO = "auto"
    NONE = "none"


class OutputSettings(Section):
    """What is written back."""

    seg_plane_geometry: PlaneGeometry = PlaneGeometry.AUTO
    seg_fractional: bool = False
    sc_longest_side: Annotated[int, Field(ge=512, le=4096)] = 1024
    sc_jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 92


class DicomDestination(Section):
    """A DICOM node that outputs are sent to by C-STORE."""

    kind: Literal["dicom"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    host: Annotated[str, AfterValidator(_host)]
    port: Port
    ae_title: AETitle
    calling_ae_title: AETitle = "NEMT"


class FolderDestination(Section):
    """A folder that outputs are written to, `<StudyInstanceUID>/<SOPInstanceUID>.dcm`.

    It must exist: one that does not is a share that is not mounted, and is waited for.
    """

    kind: Literal["folder"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    path: UserPath


Destination = Annotated[DicomDestination | FolderDestination, Field(discriminator="kind")]


class DeliverySettings(Section):
    """How outputs are sent. All but a rejection of the object itself is tried again for ever."""

    connect_timeout_s: Seconds = 10
    dimse_timeout_s: Seconds = 30
    idle_close_s: Seconds = 10
    retry_first_s: Seconds = 5
    retry_longest_s: Seconds = 300
    max_rejections: Annotated[int, Field(ge=1, le=100)] = 10
    """Rejections that make an object a dead letter. From the second on, `retry_longest_s` lies
    between them, so that no outage of a few minutes makes one.
    """


def default_state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The user's state directory (XDG Base Directory Specification: XDG_STATE_HOME)."""
    base = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "nemt-dicom"


class StateSettings(Section):
    dir: UserPath = Field(default_factory=default_state_dir)


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """The whole configuration. `resolved_destinations` is never empty."""

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
        """The destinations, or the folder `results` in the state folder where none is given."""
        if self.destinations:
            return self.destinations
        return (FolderDestination(kind="folder", name="results", path=self.own_results),)

    @property
    def own_results(self) -> Path:
        """The folder in the state folder that the service makes for results by itself."""
        return self.state.dir / "results"


def load_settings(
    file: Path | None = None,
    env: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Reads, merges and validates the configuration.

    `overrides` holds values of the command line by section and key and wins over everything.
    Raises `ConfigError` with one line for each problem.
    """
    merged: dict[str, Any] = _read_toml(file) if file is not None else {}
    problems = _merge_env(merged, env)
    for section, values in (overrides or {}).items():
        table = merged.setdefault(section, {})
        if isinstance(table, dict):  # what else a file may have put there is refused below
            table.update(values)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        problems += [_describe(item, env) for item in error.errors()]
    if problems:
        source = f"{file}: " if file is not None else ""
        raise ConfigError("\n".join(source + line for line in problems))
    return settings


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from error


def _merge_env(merged: dict[str, Any], env: Mapping[str, str]) -> list[str]:
    """Writes NEMT_SECTION__KEY into `merged`; returns the names that are no setting."""
    problems = []
    for name in sorted(env):
        if not name.startswith(ENV_PREFIX) or name in ENV_IGNORED:
            continue
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if section == "destinations" and not key:
            try:
                merged["destinations"] = json.loads(env[name])
            except json.JSONDecodeError as error:
                problems.append(f"{name}: not valid JSON ({error}); allowed: a list of tables")
            continue
        model = Settings.model_fields.get(section)
        if model is None or section == "destinations":
            shown = f"{name} = {env[name]!r}"
            problems.append(f"{shown}: no such section {section!r}; allowed: {_sections()}")
        elif key not in _section_model(section).model_fields:
            allowed = _fields(section)
            shown = f"{name} = {env[name]!r}"
            problems.append(f"{shown}: no such key {key!r}; allowed in [{section}]: {allowed}")
        else:
            value: Any = env[name]
            if _is_list(section, key):
                value = [part.strip() for part in value.split(",") if part.strip()]
            table = merged.setdefault(section, {})
            if isinstance(table, dict):
                table[key] = value
    return problems


def _sections() -> str:
    return ", ".join(Settings.model_fields)


def _section_model(section: str) -> type[BaseModel]:
    model = Settings.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model


def _fields(section: str) -> str:
    return ", ".join(_section_model(section).model_fields)


def _is_list(section: str, key: str) -> bool:
    default = _section_model(section).model_fields[key].default
    return isinstance(default, tuple)


def _describe(item: Any, env: Mapping[str, str]) -> str:
    """One line: the key (by its environment name where that set it), its value, what is allowed."""
    kinds: dict[str, type[Section]] = {"dicom": DicomDestination, "folder": FolderDestination}
    # a destination's kind stands in its place as if it were a key
    where = [
        str(part)
        for depth, part in enumerate(item["loc"])
        if not (item["loc"][0] == "destinations" and depth == 2 and part in kinds)
    ]
    name = ".".join(where) or "configuration"
    env_name = ENV_PREFIX + "__".join(where[:2]).upper()
    name = env_name if env_name in env else name
    if plain := _plainly(item["type"], name, where):
        return plain
    given = item.get("input")
    shown = f"{name} = {given!r}" if isinstance(given, str | int | float | bool) else name
    if item["type"] != "extra_forbidden":
        return f"{shown}: {item['msg'].removeprefix('Value error, ')}"
    if len(where) == 1:
        return f"{shown}: no such section; allowed: {_sections()}"
    if where[0] != "destinations":
        return f"{shown}: no such key; allowed in [{where[0]}]: {_fields(where[0])}"
    kind = next(part for part in item["loc"] if part in kinds)
    return f"{shown}: no such key; allowed: {', '.join(kinds[kind].model_fields)}"


def _plainly(kind: str, name: str, where: list[str]) -> str:
    """Mistakes that pydantic has words of its own for; empty for all others."""
    match kind:
        case "missing":
            return f"{name}: is required"
        case "union_tag_not_found":
            return f"{name}.kind: is required; allowed: dicom, folder"
        case "tuple_type":
            example = "[[destinations]]" if name == "destinations" else f'{where[-1]} = ["..."]'
            return f"{name}: must be a list: {example}"
    return ""
