"""The options of nemt-train: few, taught by --help, and former names are answered."""

import argparse
import re
from collections.abc import Callable

import pytest

from tests.conftest import ROOT
from trainer import eval_cli
from trainer.cli import read_arguments
from trainer.options import GONE, KEPT, SWITCHES, build_parser, new_spelling
from trainer.training.recipe_file import LEFT_OUT, RENAMED, names

DATA = ["--target", "pneumonia", "--data", "data", "--out", "out"]


def shown() -> list[argparse.Action]:
    """The options that `--help` lists."""
    actions = build_parser()._actions
    return [action for action in actions if action.help is not argparse.SUPPRESS]


def test_there_are_few_options() -> None:
    assert len(shown()) <= 22


def test_every_option_says_what_it_does() -> None:
    assert all(action.help for action in shown())


def test_help_says_what_goes_in_what_comes_out_how_long_and_what_next() -> None:
    text = " ".join(build_parser().format_help().split())
    for word in ("goes in", "comes out", "how long", "then", "nemt-eval", "examples:"):
        assert word in text
    assert "Boxes and lesion masks never take part in training" in text


@pytest.mark.parametrize("parser", [build_parser, eval_cli.build_parser])
def test_help_shows_a_cache_folder_of_any_name(
    parser: Callable[[], argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMT_CACHE", "/100%b")
    assert "(default: /100%b)" in " ".join(parser().format_help().split())


@pytest.mark.parametrize("arguments", [["--data", "nih"], ["--no-such-option"], ["--mask", "3"]])
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(arguments)
    assert ended.value.code == 2


def test_without_a_target_the_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["--data", "nih"])
    assert "name the label to explain by --target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("former", "now"),
    [
        (["--mask-epochs", "3"], "--mask-epochs is now --set explanation_module.epochs=3"),
        (["--mask-epochs=3"], "--mask-epochs is now --set explanation_module.epochs=3"),
        (["--area-weight"], "--set explanation_module.area_weight=VALUE"),
        (["--preset", "paper"], "--preset is now --recipe paper"),
        (["--objective", "nem-u"], "--recipe nem-u"),
        (["--objective", "literal"], "--set explanation_module.objective=literal"),
        (["--random-init"], "--set target_model.pretrained=false"),
        (["--auxiliary", "edema, mass"], """--set target_model.auxiliary='["edema", "mass"]'"""),
        (["--no-augment"], "--no-augment was removed: every run augments its images"),
        (["--decoder-norm", "group"], "every run has decoder_norm = batch"),
        (["--compile"], "--compile was removed"),
    ],
)
def test_an_option_of_before_is_answered_with_the_new_spelling(
    former: list[str], now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments([*DATA, *former])
    assert ended.value.code == 2
    assert now in capsys.readouterr().err


def test_what_replaces_a_former_option_is_there() -> None:
    for former in RENAMED.keys() - KEPT:
        said = new_spelling(f"--{former.replace('_', '-')}", "1")
        assert said.rpartition(" --set ")[2].partition("=")[0] in names()
    for now in SWITCHES.values():
        read_arguments([*DATA, *now.split()])
    assert {f"--{name.replace('_', '-')}" for name in LEFT_OUT} - GONE.keys() == {"--augment"}
    assert not {new_spelling(action.option_strings[-1]) for action in shown()} - {""}


@pytest.mark.parametrize("name", ["README.md", "deploy/experiments.md"])
def test_no_document_names_a_former_option_in_a_command(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    commands = re.findall(r"(?:^|`)(nemt-train [^`\n]*(?:\n(?=[^`\n]*`)[^`\n]*)?)", text, re.M)
    assert commands
    former = [flag for line in commands for flag in re.findall(r"--[a-z-]+", line)]
    assert [flag for flag in former if new_spelling(flag)] == []
