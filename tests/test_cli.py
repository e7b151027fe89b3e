"""The commands as a user meets them: what they print, what they leave, how they end."""

import argparse
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from nemt_dicom import cli, commands, demo, jobs
from nemt_dicom.config import load_settings
from nemt_dicom.errors import BadOutput, NemtError, Reason, StateError
from nemt_dicom.files import Fs
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.explanation import Explanation
from nemt_dicom.model.golden import golden_radiograph
from nemt_dicom.state.records import Arrival, Output, Rejection
from nemt_dicom.state.store import Store
from tests.model.bundle_kit import as_schema_2
from tests.service.hospital import Service
from tests.state import version_1

CHEST = str(get_testdata_file("RG1_UNCR.dcm", download=False))
LEG = str(get_testdata_file("RG3_UNCR.dcm", download=False))


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as end:  # argparse
        return int(end.code or 0)


@pytest.fixture
def service(tmp_path: Path, random_bundle) -> Service:
    folder = {"kind": "folder", "name": "results", "path": str(tmp_path / "results")}
    return Service(tmp_path / "state", random_bundle.folder, [folder])


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["serve", "--port", "many"], ["explain", CHEST], ["jobs"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "exit codes" in text
    assert "nemt-dicom demo" in text
    assert "not for diagnosis" in text


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions} == set(action.choices)
            for below in action.choices.values():
                yield from parsers(below)


@pytest.mark.parametrize("parser", list(parsers(cli._parser())), ids=lambda parser: parser.prog)
def test_help_of_each_command_teaches(parser: argparse.ArgumentParser) -> None:
    assert parser.description
    assert [action for action in parser._actions if action.metavar and not action.help] == [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    assert max(len(line) for line in parser.format_help().splitlines()) <= 100


def test_explain_writes_both_objects_and_a_picture(tmp_path, random_bundle, capsys) -> None:
    out = tmp_path / "out"
    code = run("explain", CHEST, LEG, "--out", str(out), "--bundle", str(random_bundle.folder))
    assert code == 1  # the leg is refused
    assert "not_chest" in capsys.readouterr().out
    assert sorted(f.name for f in out.iterdir()) == [
        "RG1_UNCR.png",
        "RG1_UNCR.sc.dcm",
        "RG1_UNCR.seg.dcm",
    ]
    source = dcmread(CHEST, stop_before_pixels=True)
    seg = dcmread(out / "RG1_UNCR.seg.dcm")
    assert (seg.Rows, seg.Columns) == (source.Rows, source.Columns)
    assert run("explain", CHEST, "--out", str(out), "--bundle", str(random_bundle.folder)) == 0


def test_inputs_of_one_name_do_not_overwrite_each_other() -> None:
    files = [Path("a/x.dcm"), Path("b/x.dcm"), Path("x-2.dcm"), Path("c/x.dcm")]
    names = commands.distinct_names(files)
    assert len(set(names)) == 4
    assert names[0] == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[listner]\nport = 1\n", "listner"),
        ("[listener]\nprot = 1\n", "listener.prot"),
        ("[listener]\nport = 70000\n", "70000"),
        ("[listener]\nport = \n", "not valid TOML"),
    ],
)
def test_bad_configuration_is_78(tmp_path, capsys, text: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    for command in (["check-config", str(file)], ["serve", "--config", str(file)]):
        assert run(*command) == 78
        assert said in capsys.readouterr().err


def test_explain_leaves_no_half_file_and_goes_on(
    tmp_path, capsys, monkeypatch, random_bundle
) -> None:
    out, full = tmp_path / "out", iter([True])
    whole = Fs.write

    def write(fs: Fs, path: Path, data: bytes) -> None:
        if next(full, False):
            whole(fs, path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(fs, path, data)

    shutil.copy(CHEST, tmp_path / "other [b].dcm")
    arguments = ["--out", str(out), "--bundle", str(random_bundle.folder)]
    monkeypatch.setattr(Fs, "write", write)
    assert run("explain", CHEST, str(tmp_path / "other [b].dcm"), *arguments) == 1
    text = capsys.readouterr().out
    assert " No space left on device " in text, "and no markup"
    assert " other [b].dcm " in text
    assert {path.name for path in out.iterdir()} == {
        "other [b].seg.dcm", "other [b].sc.dcm", "other [b].png",
    }  # fmt: skip


def test_explain_goes_on_after_an_explanation_that_is_not_finite(
    tmp_path, capsys, monkeypatch, random_bundle
) -> None:
    bad, whole = iter([True]), Explainer.explain

    def explain(explainer: Explainer, radiographs: Sequence[Radiograph]) -> list[Explanation]:
        if next(bad, False):
            raise BadOutput("the model gave NaN or infinity")
        return whole(explainer, radiographs)

    monkeypatch.setattr(Explainer, "explain", explain)
    shutil.copy(CHEST, tmp_path / "other.dcm")
    options = ["--out", str(tmp_path / "out"), "--bundle", str(random_bundle.folder)]
    assert run("explain", CHEST, str(tmp_path / "other.dcm"), *options) == 1
    assert " the model gave NaN or infinity " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "other.seg.dcm", "other.sc.dcm", "other.png",
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [["explain", CHEST], ["demo"]])
def test_a_file_in_the_place_of_out_is_said(tmp_path, capsys, arguments: list[str]) -> None:
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        assert run(*arguments, "--out", str(out)) == 1
        assert f"--out {out}" in capsys.readouterr().err.replace("\n", "")


def test_a_configuration_with_no_such_bundle_is_78(tmp_path, capsys) -> None:
    file = tmp_path / "nemt.toml"
    file.write_text('[explanation]\nbundle = "/nope/x"\n')
    assert run("check-config", str(file)) == 78
    assert "/nope/x" in capsys.readouterr().err


def test_what_others_wrote_is_shown_as_it_is(tmp_path, capsys) -> None:
    """A UID and a comment that read as markup neither vanish nor end the command."""
    store = Store(tmp_path)
    store.refuse_arrival(
        Rejection(
            sop_class_uid="1.2",
            sop_instance_uid="[/x]",
            content_digest="c",
            reason=Reason.INVALID_UID,
            detail="[bold]not[/y] a UID",
        )
    )
    store.close()
    assert run("jobs", "list", "--state", str(tmp_path)) == 0
    assert "[/x]" in capsys.readouterr().out
    assert run("jobs", "show", "[/x]", "--state", str(tmp_path)) == 0
    assert "[bold]not[/y] a UID" in capsys.readouterr().out


def test_misspelt_environment_is_78(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("NEMT_LISTNER__PORT", "11113")
    assert run("jobs", "list", "--state", str(tmp_path)) == 78
    assert "NEMT_LISTNER__PORT" in capsys.readouterr().err


def test_valid_configuration(capsys) -> None:
    assert (
        run("check-config", str(Path(cli.__file__).parent.parent / "deploy/nemt-dicom.toml")) == 0
    )
    assert "valid" in capsys.readouterr().out


def test_bundle_with_one_byte_changed_is_refused(tmp_path, capsys, random_bundle) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(random_bundle.folder, copy)
    assert run("bundle", "verify", str(copy)) == 0
    assert run("bundle", "show", str(copy)) == 0
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    state = tmp_path / "state"
    for command in (
        ["bundle", "verify", str(copy)],
        ["explain", CHEST, "--out", str(tmp_path / "out"), "--bundle", str(copy)],
    ):
        assert run(*command) == 1
        assert "model.safetensors is damaged" in capsys.readouterr().err
    served = subprocess.run(
        [sys.executable, "-m", "nemt_dicom.cli", "serve", f"--bundle={copy}", f"--state={state}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert served.returncode == 1
    assert "model.safetensors is damaged" in served.stderr


def test_bundle_show_says_what_the_bundle_is(capsys) -> None:
    assert run("bundle", "show") == 0
    text = capsys.readouterr().out
    bundle = Bundle.load()
    assert bundle.evaluation is not None
    for said in (bundle.model_digest, bundle.digest, "pneumonia 0.4.0", "0.1233", "AUC, all"):
        assert said in text, said
    figure = bundle.evaluation.module.scores.faithfulness
    assert figure is not None
    assert f"{figure.mean:.3f} ({figure.lo:.3f} to {figure.hi:.3f})" in text
    for check in bundle.evaluation.checks:
        assert check.question in text
    assert "Not for clinical use" in text  # the model card


def test_bundle_show_of_one_that_was_never_evaluated(capsys, random_bundle) -> None:
    assert run("bundle", "show", str(random_bundle.folder)) == 0
    text = capsys.readouterr().out
    assert "Never evaluated" in text
    assert "nemt-eval --bundle" in text


def test_bundle_help_teaches(capsys) -> None:
    assert run("bundle", "--help") == 0
    text = capsys.readouterr().out
    for said in ("upgrade", "verify", "model digest", "examples:", "exit codes"):
        assert said in text
    assert run("bundle", "upgrade", "--help") == 0
    assert "killed" in capsys.readouterr().out
    assert run("bundle", "upgrade") == 2


def test_bundle_upgrade(tmp_path, capsys, random_bundle) -> None:
    old = str(as_schema_2(random_bundle, tmp_path / "old"))
    for command in (["show", old], ["verify", old]):
        assert run("bundle", *command) == 1
        assert f"nemt-dicom bundle upgrade {old}" in capsys.readouterr().err
    assert run("bundle", "upgrade", old) == 0
    assert "converted to schema 3" in capsys.readouterr().out
    assert run("bundle", "upgrade", old) == 0
    assert "has schema 3 already" in capsys.readouterr().out
    assert run("bundle", "verify", old) == 0
    early = str(as_schema_2(random_bundle, tmp_path / "early", metrics={"auc": 0.5}))
    assert run("bundle", "upgrade", early) == 0
    assert "measure them again" in capsys.readouterr().out
    (tmp_path / "early" / "MODEL_CARD.md").write_text("another")
    assert run("bundle", "upgrade", early) == 1
    assert "MODEL_CARD.md is damaged" in capsys.readouterr().err
    assert run("bundle", "upgrade", str(tmp_path / "none")) == 1
    assert "this is not a whole bundle" in capsys.readouterr().err


def test_second_service_on_a_state_folder_is_75(service: Service) -> None:
    service.start()
    try:
        second = service.run("serve", "--port", "1")
        assert second.returncode == 75
        assert str(service.process.pid) in second.stderr
        listed = service.run("jobs", "list", "--json")
        assert json.loads(listed.stdout) == []
        shown = service.run("jobs", "show", "1.2.3")
        assert shown.returncode == 1
        assert "1.2.3" in shown.stderr
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_service_ends_cleanly_on_a_signal(service: Service, number: signal.Signals) -> None:
    service.start()
    service.process.send_signal(number)
    assert service.process.wait(60) == 0


LONG_UID = "1.2.276.0.7230010.3.1.4.8323329.5304.1517874363.986425.123456789"


def receive(state: Path, *uids: str) -> None:
    """Fills a state folder with instances that are explained."""
    state.mkdir(exist_ok=True)
    with closing(Store(state)) as store:
        for number, uid in enumerate(uids):
            store.receive(
                Arrival(
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
                    sop_instance_uid=uid,
                    content_digest=f"content {number}",
                    blob=f"blob {number}",
                    received=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
                )
            )
            (item,) = store.claim("w", 1)
            output = Output(
                kind="seg",
                sop_class_uid="1.2.3",
                sop_instance_uid=f"{uid}.1",
                study_instance_uid="1.2.4",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                blob="out",
            )
            summary = {"verdict": "explained", "probability": 0.5}
            destinations = ["pacs", "results"]
            store.complete(
                "w", item.id, outputs=[output], destinations=destinations, summary=summary
            )


@pytest.mark.parametrize("command", [["list"], ["show", LONG_UID]])
def test_a_pipe_has_whole_uids(tmp_path, capsys, monkeypatch, command: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    receive(tmp_path, LONG_UID)
    assert run("jobs", *command, "--state", str(tmp_path)) == 0
    assert f" {LONG_UID} " in capsys.readouterr().out


@pytest.mark.parametrize("command", [["list"], ["show", LONG_UID]])
def test_a_terminal_has_all_digits_of_uids(tmp_path, capsys, monkeypatch, command) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no colours
    receive(tmp_path, LONG_UID)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("jobs", *command, "--state", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    cells = [[c.strip() for c in line.split("\u2502")] for line in text.splitlines()]
    assert LONG_UID in "".join(row[2] for row in cells if len(row) > 2)


def test_jobs_by_the_name_of_the_log(tmp_path, capsys) -> None:
    receive(tmp_path, "1.2.3", LONG_UID)
    name = hashlib.sha256(LONG_UID.encode()).hexdigest()[:12]
    state = ["--state", str(tmp_path)]
    assert run("jobs", "list", "--json", *state) == 0
    assert json.loads(capsys.readouterr().out)[1]["name"] == name
    assert run("jobs", "show", name, "--json", *state) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["sop_instance_uid"], shown["name"]) == (LONG_UID, name)
    assert run("jobs", "show", LONG_UID, *state) == 0
    assert name in capsys.readouterr().out


def test_retry_where_the_default_destination_is_the_services_own(tmp_path, capsys) -> None:
    """Results went to `pacs` once, and go to the default folder by the service's own file."""
    receive(tmp_path, "1.2.3", "1.2.4")
    (tmp_path / "nemt.toml").write_text(f'[state]\ndir = "{tmp_path}"\n')
    assert run("jobs", "retry", "--all", "--state", str(tmp_path)) == 1
    assert run("jobs", "retry", "--all", "--config", str(tmp_path / "nemt.toml")) == 0
    assert "destination pacs is not configured" in capsys.readouterr().out


def test_retry_says_what_it_did(tmp_path, capsys, monkeypatch) -> None:
    state = ["--state", str(tmp_path / "state")]
    receive(tmp_path / "state", "1.2.3", "1.2.4")
    assert run("jobs", "retry", *state) == 2
    assert run("jobs", "retry", "1.2.3", "--all", *state) == 2
    assert run("jobs", "retry", "--all", *state) == 1  # only a setting knows of pacs
    assert "--config" in capsys.readouterr().err
    destinations = [{"kind": "folder", "name": n, "path": "x"} for n in ("pacs", "new")]
    monkeypatch.setenv("NEMT_DESTINATIONS", json.dumps(destinations))
    assert run("jobs", "retry", "1.2.9", *state) == 1
    assert "no instance 1.2.9" in capsys.readouterr().err
    assert run("jobs", "retry", "1.2.3", *state) == 0
    text = capsys.readouterr().out
    assert "deliveries added: 1\n" in text
    assert "deliveries left, destination results is not configured: 1\n" in text
    assert run("jobs", "retry", "--all", *state) == 0
    assert "deliveries added: 1\n" in capsys.readouterr().out
    assert run("jobs", "retry", "--all", "--state", str(tmp_path / "none")) == 1
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    assert run("jobs", "retry", "--all", "--state", str(tmp_path / "empty")) == 1
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("command", [["list"], ["show", "1.2.3"], ["retry", "--all"]])
def test_a_database_of_an_earlier_release_is_left_to_serve(tmp_path, capsys, command) -> None:
    """The service of that release may run, and would not know the new tables."""
    version_1.write(tmp_path)
    assert run("jobs", *command, "--state", str(tmp_path)) == 1
    assert "start `nemt-dicom serve`, which migrates it" in capsys.readouterr().err
    assert version_1.version(tmp_path / "store.db") == 1


def test_a_locked_database_is_said(tmp_path) -> None:
    receive(tmp_path, "1.2.3")
    settings = load_settings(overrides={"state": {"dir": tmp_path}})
    with (
        closing(Store(tmp_path)) as other,
        other._db.change(),
        pytest.raises(StateError, match="the database is locked"),
    ):
        jobs.retry(settings, None, by_file=True, busy_ms=10)


@pytest.fixture
def other_account() -> Callable[[], AbstractContextManager[None]]:
    """Runs a part of the test as nobody."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another account")

    @contextmanager
    def become() -> Iterator[None]:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return become


@pytest.mark.parametrize("command", [["list"], ["show", "1.2.3"], ["retry", "--all"]])
def test_state_of_another_account_is_said(capsys, command, other_account) -> None:
    with TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        state.mkdir()
        receive(state, "1.2.3")
        with other_account():
            assert run("jobs", *command, "--state", str(state)) == 1
        text = capsys.readouterr().err
        assert f"{state}/store.db: cannot be opened: Permission denied" in text
        assert "Errno" not in text
        for path in (Path(folder), state, *state.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with other_account():
            assert run("jobs", *command, "--state", str(state)) == 1
        assert f"{state}/store.db: cannot be opened:" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(service: Service) -> None:
    receive(service.state, *(f"1.2.{number}" for number in range(400)))
    for options in ("--json", ""):
        piped = subprocess.run(
            f"{sys.executable} -m nemt_dicom.cli jobs list {options} | head -1",
            shell=True,
            env=service.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert piped.returncode == 0
        assert len(piped.stdout.splitlines()) == 1
        assert piped.stderr == ""


def test_jobs_without_a_state_folder_says_so(tmp_path, capsys) -> None:
    assert run("jobs", "list", "--state", str(tmp_path / "none")) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_demo_brings_back_everything(tmp_path, capsys, random_bundle, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMT_LISTENER__PORT", "1")  # a demo does not take over site settings
    assert run("demo", "--bundle", str(random_bundle.folder)) == 0
    text = capsys.readouterr().out
    assert "explain_below_threshold is on" in text
    for label in ("probability", "evidence", "time: C-STORE", "time: explain"):
        assert label in text
    made = {f.name for f in (tmp_path / "nemt-demo").iterdir()}
    assert made == {"RG1_UNCR.png", "RG1_UNCR.sc.dcm", "RG1_UNCR.seg.dcm"}


def test_demo_of_two_files_of_one_name(tmp_path, capsys, random_bundle) -> None:
    """One of them a leg, which is refused; the other's outputs carry their own labels."""
    (tmp_path / "a").mkdir()
    shutil.copy(LEG, tmp_path / "a" / "1.2.840.dcm")
    shutil.copy(CHEST, tmp_path / "1.2.840.dcm")
    files = str(tmp_path / "a" / "1.2.840.dcm"), str(tmp_path / "1.2.840.dcm")
    options = "--out", str(tmp_path / "out"), "--bundle", str(random_bundle.folder)
    assert run("demo", *files, *options) == 0
    text = capsys.readouterr().out
    assert "not_chest" in text
    made = {f.name for f in (tmp_path / "out").iterdir()}
    assert made == {"1.2.840-2.png", "1.2.840-2.sc.dcm", "1.2.840-2.seg.dcm"}
    for label in ("seg", "sc", "png"):
        assert re.search(rf"^. {label} +. .*1.2.840-2.{label}", text, re.MULTILINE), label


def test_demo_does_not_wait_for_a_service_that_is_gone(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    (tmp_path / "serve.log").write_text("its last words")
    store = Store(tmp_path)
    store.receive(
        Arrival(
            sop_class_uid="1.2",
            sop_instance_uid="1.2.3",
            content_digest="c",
            blob="b",
            received=datetime.now(UTC),
        )
    )
    store.close()
    pacs = demo.Pacs()
    try:
        with pytest.raises(NemtError, match="its last words"):
            demo._await("1.2.3", pacs, demo._Service(port=1, state=tmp_path, process=process))
    finally:
        pacs.stop()


def test_demo_names_the_file_it_cannot_read(tmp_path, capsys) -> None:
    damaged = Path(CHEST).read_bytes()
    place = damaged.index(b"\x08\x00\x18\x00UI", 132) + 4  # SOPInstanceUID
    (tmp_path / "damaged.dcm").write_bytes(damaged[:place] + b"Q?" + damaged[place + 2 :])
    for name in ("gone.dcm", "damaged.dcm"):
        assert run("demo", str(tmp_path / name), "--out", str(tmp_path / "out")) == 1
        assert name in capsys.readouterr().err.replace("\n", "")


def test_demo_names_the_result_it_cannot_write(tmp_path) -> None:
    buffer = BytesIO()
    golden_radiograph().save_as(buffer, enforce_file_format=True)
    with pytest.raises(NemtError, match=r"a\.seg\.dcm cannot be written"):
        list(demo._write([buffer.getvalue()], tmp_path / "none", "a"))
