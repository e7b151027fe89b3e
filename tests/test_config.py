"""Settings: which source wins, and that each mistake is reported with the allowed values."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from nemt_dicom.config import (
    DicomDestination,
    FolderDestination,
    ListenerSettings,
    PlaneGeometry,
    Settings,
    default_state_dir,
    load_settings,
)
from nemt_dicom.errors import ConfigError

DICOM = {"kind": "dicom", "name": "pacs", "host": "10.0.0.5", "port": 104, "ae_title": "PACS"}
DICOM_TOML = '[[destinations]]\nkind = "dicom"\nname = "pacs"\nhost = "a"\nport = 104\n'


def load(
    tmp_path: Path, toml: str = "", env: dict[str, str] | None = None, **more: Any
) -> Settings:
    file = tmp_path / "nemt-dicom.toml"
    file.write_text(toml, encoding="utf-8")
    return load_settings(file, env or {}, **more)


# --- values ---


def test_embedded_defaults_are_safe() -> None:
    settings = load_settings(env={})
    assert settings.listener.host == "127.0.0.1"
    assert (settings.listener.port, settings.listener.ae_title) == (11112, "NEMT")
    assert settings.explanation.bundle is None
    assert not settings.explanation.explain_below_threshold
    assert settings.output.seg_plane_geometry is PlaneGeometry.AUTO
    assert settings.input.min_age_years is None
    (destination,) = settings.resolved_destinations()
    assert destination == FolderDestination(
        kind="folder", name="results", path=settings.state.dir / "results"
    )


def test_state_directory_follows_xdg() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/s"}) == Path("/s/nemt-dicom")
    assert default_state_dir({}) == Path.home() / ".local" / "state" / "nemt-dicom"


def test_environment_wins_over_file_and_command_line_over_both(tmp_path: Path) -> None:
    toml = "[listener]\nport = 1001\nmax_pdu = 16384\nae_title = 'FILE'\n"
    env = {"NEMT_LISTENER__PORT": "1002", "NEMT_LISTENER__AE_TITLE": "ENV", "OTHER": "x"}
    settings = load(tmp_path, toml, env, overrides={"listener": {"port": 1003}})
    assert settings.listener.port == 1003
    assert settings.listener.ae_title == "ENV"
    assert settings.listener.max_pdu == 16384


def test_a_wrong_value_of_the_command_line_is_not_said_of_the_environment(tmp_path: Path) -> None:
    env = {"NEMT_LISTENER__PORT": "1002"}
    with pytest.raises(ConfigError, match=r"listener\.port = 99999") as caught:
        load(tmp_path, env=env, overrides={"listener": {"port": 99999}})
    assert "NEMT_LISTENER__PORT" not in str(caught.value)


def test_override_of_a_section_that_the_file_leaves_out(tmp_path: Path) -> None:
    settings = load(tmp_path, overrides={"state": {"dir": tmp_path}})
    assert settings.state.dir == tmp_path


ENV_VALUES = [
    ("NEMT_LISTENER__ALLOWED_CALLING_AE_TITLES", "A1, B 2,", ("A1", "B 2")),
    ("NEMT_INPUT__MIN_AGE_YEARS", "18", 18.0),
    ("NEMT_INPUT__REFUSE_BURNED_IN", "true", True),
    ("NEMT_EXPLANATION__DEVICE", "cpu", "cpu"),
    ("NEMT_OUTPUT__SEG_PLANE_GEOMETRY", "none", PlaneGeometry.NONE),
    ("NEMT_DELIVERY__RETRY_FIRST_S", "0.5", 0.5),
    ("NEMT_STATE__DIR", "/var/lib/nemt", Path("/var/lib/nemt")),
    ("NEMT_LOG__LEVEL", "debug", "debug"),
]


@pytest.mark.parametrize(("name", "text", "value"), ENV_VALUES, ids=[v[0] for v in ENV_VALUES])
def test_environment_value(name: str, text: str, value: object) -> None:
    section, key = name.removeprefix("NEMT_").lower().split("__")
    assert getattr(getattr(load_settings(env={name: text}), section), key) == value


def test_every_key_can_be_set_by_the_environment(tmp_path: Path) -> None:
    """The default of each key is written as text and read back as the same value."""
    defaults = load_settings(env={})
    env = {}
    for section, field in Settings.model_fields.items():
        if section == "destinations":
            continue
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields:
            value = getattr(getattr(defaults, section), key)
            if value is not None:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                env[f"NEMT_{section}__{key}".upper()] = text
    assert len(env) > 25
    assert load_settings(env=env) == defaults


def test_destinations_by_file_and_by_environment(tmp_path: Path) -> None:
    by_file = load(tmp_path, DICOM_TOML + 'ae_title = "PACS"\n').resolved_destinations()
    by_env = load_settings(
        env={
            "NEMT_DESTINATIONS": '[{"kind": "dicom", "name": "pacs", "host": "a", "port": 104, '
            '"ae_title": "PACS"}]'
        }
    ).resolved_destinations()
    assert by_file == by_env
    assert isinstance(by_file[0], DicomDestination)
    assert by_file[0].calling_ae_title == "NEMT"


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load(tmp_path, "[state]\ndir = '~/nemt'\n[explanation]\nbundle = '~/bundle'")
    assert settings.state.dir == tmp_path / "nemt"
    assert settings.explanation.bundle == tmp_path / "bundle"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(env={})
    with pytest.raises(ValueError, match="frozen"):
        settings.listener.port = 1  # type: ignore[misc]


# --- mistakes ---

FILE_MISTAKES = {
    # TOML, and words of the message: the key, the value, the allowed values
    "unknown-section": ("[listner]\nport = 3", ["listner", "no such section", "listener, input"]),
    "section-like-a-kind": ("[dicom]\nport = 3", ["dicom", "no such section", "listener, input"]),
    "key-like-a-kind": ("[listener]\nfolder = 'x'", ["listener.folder = 'x'", "no such key"]),
    "text-for-a-list": (
        "[listener]\nallowed_calling_ae_titles = 'PACS'",
        ["listener.allowed_calling_ae_titles", 'must be a list: allowed_calling_ae_titles = ["'],
    ),
    "one-bracket": ("[destinations]\nname = 'a'", ["must be a list: [[destinations]]"]),
    "unknown-key": ("[listener]\nprot = 3", ["listener.prot = 3", "no such key", "port, ae_title"]),
    "key-outside-sections": ("port = 3", ["port = 3", "no such section", "listener"]),
    "section-is-a-number": ("listener = 3", ["listener = 3"]),
    "section-is-a-list": ("[[listener]]\nport = 3", ["listener"]),
    "port-too-high": ("[listener]\nport = 70000", ["listener.port = 70000", "65535"]),
    "port-zero": ("[listener]\nport = 0", ["listener.port = 0", "1"]),
    "port-is-text": ("[listener]\nport = 'x'", ["listener.port = 'x'", "integer"]),
    "port-is-true": ("[listener]\nport = true", ["listener", "port = True", "not allowed"]),
    "time-out-is-true": ("[delivery]\nretry_first_s = true", ["retry_first_s = True"]),
    "time-out-zero": ("[delivery]\nretry_first_s = 0", ["delivery.retry_first_s = 0", "0"]),
    "nan": ("[input]\nmax_megapixels = nan", ["input.max_megapixels = nan", "400"]),
    "infinite": ("[delivery]\nretry_first_s = inf", ["delivery.retry_first_s = inf", "3600"]),
    "truth-is-text": ("[input]\nrefuse_burned_in = 'maybe'", ["refuse_burned_in = 'maybe'"]),
    "level": ("[log]\nlevel = 'loud'", ["log.level = 'loud'", "'debug', 'info', 'warning'"]),
    "device": ("[explanation]\ndevice = 'tpu'", ["explanation.device = 'tpu'", "'auto', 'cpu'"]),
    "geometry": ("[output]\nseg_plane_geometry = 'x'", ["= 'x'", "'auto' or 'none'"]),
    "ae-title-too-long": ("[listener]\nae_title = 'ABCDEFGHIJKLMNOPQ'", ["1 to 16 printable"]),
    "ae-title-empty": ("[listener]\nae_title = ''", ["listener.ae_title = ''", "1 to 16"]),
    "ae-title-backslash": ("[listener]\nae_title = 'A\\B'", ["ae_title = 'A\\\\B'", "backslash"]),
    "ae-title-in-list": (
        "[listener]\nallowed_calling_ae_titles = ['OK', ' X']",
        ["allowed_calling_ae_titles.1 = ' X'", "no outer spaces"],
    ),
    "destination-kind": (
        '[[destinations]]\nkind = "ftp"\nname = "a"',
        ["destinations.0", "'ftp'", "'dicom', 'folder'"],
    ),
    "destination-no-kind": (
        '[[destinations]]\nname = "a"',
        ["destinations.0.kind: is required; allowed: dicom, folder"],
    ),
    "destination-empty-label": (
        DICOM_TOML.replace('"a"', '"pacs..hospital.local"'),
        ["destinations.0.host = 'pacs..hospital.local'", "host name or an IP address"],
    ),
    "destination-url": (
        DICOM_TOML.replace('"a"', '"http://pacs"'),
        ["destinations.0.host = 'http://pacs'", "host name or an IP address"],
    ),
    "destination-lacks-a-key": (DICOM_TOML, ["destinations.0.ae_title", "is required"]),
    "destination-unknown-key": (
        DICOM_TOML + 'ae_title = "P"\naet = "P"',
        ["destinations.0.aet = 'P'", "no such key", "ae_title", "calling_ae_title"],
    ),
    "destination-name": (
        '[[destinations]]\nkind = "folder"\nname = "Über uns"\npath = "/x"',
        ["destinations.0.name = 'Über uns'", "a-z0-9"],
    ),
    "destination-named-twice": (
        '[[destinations]]\nkind = "folder"\nname = "a"\npath = "/x"\n' * 2,
        ["given twice: a"],
    ),
    "not-toml": ("x = [", ["not valid TOML"]),
}


@pytest.mark.parametrize(("toml", "words"), FILE_MISTAKES.values(), ids=FILE_MISTAKES)
def test_mistake_in_the_file(tmp_path: Path, toml: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "nemt-dicom.toml") + ":")
    for word in words:
        assert word in message
    assert "pydantic" not in message


ENV_MISTAKES = {
    "section": ("NEMT_LISTNER__PORT", "3", ["NEMT_LISTNER__PORT = '3'", "'listner'", "listener"]),
    "key": ("NEMT_LISTENER__PROT", "3", ["NEMT_LISTENER__PROT = '3'", "'prot'", "port, ae_title"]),
    "no-key": ("NEMT_LISTENER", "3", ["NEMT_LISTENER = '3'", "no such key", "port"]),
    "one-underscore": ("NEMT_LISTENER_PORT", "3", ["NEMT_LISTENER_PORT", "no such section"]),
    "value": ("NEMT_LISTENER__PORT", "x", ["NEMT_LISTENER__PORT = 'x'", "integer"]),
    "range": ("NEMT_LISTENER__PORT", "99999", ["NEMT_LISTENER__PORT = '99999'", "65535"]),
    "empty": ("NEMT_LISTENER__PORT", "", ["NEMT_LISTENER__PORT = ''"]),
    "choice": ("NEMT_LOG__LEVEL", "loud", ["NEMT_LOG__LEVEL = 'loud'", "'debug', 'info'"]),
    "json": ("NEMT_DESTINATIONS", "pacs", ["NEMT_DESTINATIONS", "not valid JSON"]),
    "json-kind": ("NEMT_DESTINATIONS", "{}", ["NEMT_DESTINATIONS"]),
    "one-destination": ("NEMT_DESTINATIONS__PACS", "x", ["NEMT_DESTINATIONS__PACS"]),
}


@pytest.mark.parametrize(("name", "text", "words"), ENV_MISTAKES.values(), ids=ENV_MISTAKES)
def test_mistake_in_the_environment(name: str, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(env={name: text})
    for word in words:
        assert word in str(caught.value)


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path,
            "[listener]\nport = 0\nprot = 1\n[log]\nlevel = 'x'",
            {"NEMT_LISTNER__PORT": "1"},
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for word in ("listener.port", "listener.prot", "log.level", "NEMT_LISTNER__PORT"):
        assert sum(word in line for line in lines) == 1


def test_override_onto_a_broken_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listener = 3"):
        load(tmp_path, "listener = 3", overrides={"listener": {"port": 4}})


def test_override_is_checked_like_any_value() -> None:
    with pytest.raises(ConfigError, match=r"listener\.port = 0"):
        load_settings(env={}, overrides={"listener": {"port": 0}})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: No such file"):
        load_settings(tmp_path / "missing.toml", {})


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[log]\nlevel = '\xe4'")
    with pytest.raises(ConfigError, match=r"latin\.toml: is not valid TOML"):
        load_settings(tmp_path / "latin.toml", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "pacs.example", "127.x.org"])
def test_open_host_needs_a_list_of_senders(host: str) -> None:
    with pytest.raises(ConfigError, match="allowed_calling_ae_titles"):
        load_settings(env={}, overrides={"listener": {"host": host}})
    named = {"host": host, "allowed_calling_ae_titles": ["MODALITY"]}
    load_settings(env={}, overrides={"listener": named})


@pytest.mark.parametrize("host", ["", "no such host"])
def test_the_listeners_host_is_checked(host: str) -> None:
    with pytest.raises(ConfigError, match="a host name or an IP address"):
        load_settings(env={}, overrides={"listener": {"host": host}})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_host_needs_no_list_of_senders(host: str) -> None:
    assert ListenerSettings(host=host).allowed_calling_ae_titles == ()


@pytest.mark.parametrize(
    "host",
    ["pacs", "pacs.hospital.local.", "10.0.0.1", "::1", "fe80::1%eth0", "pacs_1", "bücher.example"],
)
def test_hosts_of_destinations(host: str) -> None:
    destination = DicomDestination(kind="dicom", name="a", host=host, port=104, ae_title="A")
    assert destination.host == host
