"""`nemt-dicom`: the command line. It parses options, runs a command and returns its exit code."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.markup import escape

from nemt_dicom import __version__, commands
from nemt_dicom.commands import EXIT_FAILED, NOTICE
from nemt_dicom.errors import ConfigError, NemtError, StateInUse

EXIT_TEMPORARY = 75
"""EX_TEMPFAIL of sysexits.h."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""
EXIT_INTERRUPTED = 130
"""SIGINT, as a shell counts it. For wrong usage argparse exits with 2."""

EPILOG = """\
start here:
  nemt-dicom demo                          one radiograph through the real service
  nemt-dicom explain chest.dcm --out out   no network: file in, SEG and SC out
  nemt-dicom serve                         listen on 127.0.0.1:11112 as NEMT
  nemt-dicom serve --config nemt-dicom.toml
  nemt-dicom jobs list                     the received images and their states

exit codes: 0 done, 1 failed, 2 wrong usage, 75 the state folder is in use, 78 configuration,
130 interrupted (serve: 0)
"""
SERVE = """\
Receives chest radiographs by C-STORE, explains them, and sends a Segmentation (SEG) and a Secondary
Capture (SC) to every destination. It runs until SIGTERM or Ctrl-C. Images and results are kept in
the state folder: a stop or a power cut loses none.

Without a configuration file it listens on 127.0.0.1:11112 as NEMT, for any sender on this machine.
Results are then files in the folder `results` of the state folder."""
SERVE_EPILOG = """\
examples:
  nemt-dicom serve
  nemt-dicom check-config nemt-dicom.toml && nemt-dicom serve --config nemt-dicom.toml
  NEMT_LISTENER__PORT=4242 nemt-dicom serve      every setting has such a variable

Options win over variables, variables over the file, the file over the defaults.
"""
DEMO = """\
Starts the service and a small PACS on free ports of this machine, sends radiographs to the service,
and writes the results that come back to the PACS: NAME.seg.dcm, NAME.sc.dcm and NAME.png. It shows
the probabilities and the time of each step. Nothing leaves this machine."""
EXPLAIN = """\
Explains DICOM files without a network. For each file it writes NAME.seg.dcm (Segmentation),
NAME.sc.dcm (Secondary Capture) and NAME.png (its picture). A file that cannot be explained has a
row with the reason; the other files go on, and the exit code is 1."""
EXPLAIN_EPILOG = """\
columns: p is the probability of the target; "occluded" is p without the segment, "kept" is p of the
segment alone

examples:
  nemt-dicom explain chest.dcm --out out
  nemt-dicom explain study/*.dcm --out out --bundle runs/pneumonia
"""
JOBS = """\
Shows the images that the service has received, and tries again what has failed. The service may run
or not. An image is named by its SOP Instance UID, by the UID of one of its results, or by the name
of 12 digits that the log gives to either."""
JOBS_EPILOG = """\
states of an image:
  queued, inferring   it waits for its explanation, or is being explained
  done                it is explained; `jobs show` has its deliveries
  refused             it is no radiograph that this service explains; the reason says why
  conflict            its UID came before with other content; it is held
  dead                its explanation failed for good: `jobs retry` queues it again
states of a delivery: pending, sent, dead

examples:
  nemt-dicom jobs list
  nemt-dicom jobs show 3f2a9c01d4e7
  nemt-dicom jobs retry --all --config nemt-dicom.toml
"""
RETRY = """\
Queues dead images again, and makes dead deliveries pending again. Every result is also sent to
configured destinations that never got it. A result that the disk has lost is made again from its
image. Use the configuration of the service: deliveries to other destinations stay as they are."""
CHECK_CONFIG = """\
Validates a configuration file, and shows the settings that result from it, from the NEMT_...
variables and from the defaults. The exit code is 78 if a setting is unknown or not allowed."""
BUNDLE = """\
A bundle is a folder that holds a trained model and everything that explains with it: manifest.json,
model.safetensors, a golden image with its recorded answer, MODEL_CARD.md, and evaluation.json with
the figures of nemt-eval. The model digest is the SHA-256 of everything that decides an explanation.
Every result shows it. Other figures do not change it."""
BUNDLE_EPILOG = """\
examples:
  nemt-dicom bundle show                     the bundle that ships
  nemt-dicom bundle verify runs/pneumonia    before it is served
  nemt-dicom bundle upgrade runs/pneumonia   a bundle of release 0.2 to 0.7

exit codes: 0 done, 1 the bundle is damaged or cannot be read, 2 wrong usage
"""
BUNDLE_SHOW = """\
Shows the thresholds, the digests, the checks, the figures and the model card of a bundle."""
BUNDLE_VERIFY = """\
Checks the SHA-256 of every file, and replays the golden image: the model must give the recorded
answer on this machine. `nemt-dicom serve` does the same at its start."""
BUNDLE_UPGRADE = """\
Converts a bundle of schema 2 (releases 0.2 to 0.7) to schema 3, in its folder. Networks, thresholds
and the golden image stay as they are; figures move to evaluation.json. A damaged bundle is refused
before anything is written. If the command is killed, the folder is the old bundle or the new one:
run it again. A bundle of schema 3 stays as it is."""


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(argv)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        code: int = options.run(options)
    except ConfigError as error:
        errors.print(f"[red]configuration:[/red] {escape(str(error))}")
        return EXIT_CONFIG
    except StateInUse as error:
        errors.print(f"[red]in use:[/red] {escape(str(error))}")
        return EXIT_TEMPORARY
    except NemtError as error:
        errors.print(f"[red]failed:[/red] {escape(str(error))}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nemt-dicom",
        description=f"Explains chest radiographs beside a PACS. {NOTICE}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nemt-dicom {__version__}")
    named = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(named)
    _add_demo(named)
    _add_explain(named)
    _add_jobs(named)
    check = _add(
        named, "check-config", "validate a configuration file", CHECK_CONFIG, commands.check_config
    )
    check.add_argument("file", type=Path, metavar="FILE", help="the configuration, TOML")
    _add_bundle(named)
    return parser


def _add(
    named: Commands,
    name: str,
    summary: str,
    description: str,
    run: Callable[[argparse.Namespace], int] | None = None,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """Adds a command. `run` is None for a command that has commands of its own."""
    parser = named.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def _add_serve(named: Commands) -> None:
    serve = _add(named, "serve", "receive, explain, send back", SERVE, commands.serve, SERVE_EPILOG)
    _add_config(serve)
    _add_state(serve)
    serve.add_argument("--port", type=int, metavar="N", help="port to listen on (default: 11112)")
    _add_model(serve)


def _add_demo(named: Commands) -> None:
    summary = "send a radiograph through the real service on this machine"
    demo = _add(named, "demo", summary, DEMO, commands.demo)
    demo.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="DICOM_FILE",
        help="radiographs to send (default: a public one that is installed with this program)",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("nemt-demo"),
        metavar="DIR",
        help="folder for the results; it is made (default: nemt-demo)",
    )
    _add_model(demo)


def _add_explain(named: Commands) -> None:
    summary = "explain files without a network"
    explain = _add(named, "explain", summary, EXPLAIN, commands.explain, EXPLAIN_EPILOG)
    explain.add_argument("files", nargs="+", type=Path, metavar="FILE", help="DICOM radiographs")
    explain.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the results; it is made",
    )
    _add_model(explain)
    _add_config(explain)


def _add_jobs(named: Commands) -> None:
    summary = "show the received images and their states, try again"
    jobs = _add(named, "jobs", summary, JOBS, epilog=JOBS_EPILOG)
    actions = jobs.add_subparsers(required=True, metavar="list|show|retry")
    as_json = "print a JSON array for programs"
    uid = "SOP Instance UID of an image or of a result, or its name in the log"

    description = "Shows a line for each received image, oldest first."
    listing = _add(actions, "list", "all images, a line each", description, commands.jobs_list)
    _add_config(listing)
    _add_state(listing)
    listing.add_argument("--json", action="store_true", help=as_json)

    description = (
        "Shows everything that is known about an image: its state, the evidence, the deliveries."
    )
    summary = "one image: evidence and deliveries"
    show = _add(actions, "show", summary, description, commands.jobs_show)
    show.add_argument("key", metavar="SOP_INSTANCE_UID", help=uid)
    _add_config(show)
    _add_state(show)
    show.add_argument("--json", action="store_true", help=as_json)

    summary = "explain dead images again, send results again"
    retry = _add(actions, "retry", summary, RETRY, commands.jobs_retry)
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("keys", nargs="*", default=[], metavar="SOP_INSTANCE_UID", help=uid)
    which.add_argument("--all", action="store_true", help="every image")
    _add_config(retry)
    _add_state(retry)


def _add_bundle(named: Commands) -> None:
    summary = "look at a model bundle, check it, convert it"
    bundle = _add(named, "bundle", summary, BUNDLE, epilog=BUNDLE_EPILOG)
    actions = bundle.add_subparsers(required=True, metavar="show|verify|upgrade")
    for name, summary, description, run in (
        ("show", "thresholds, digests, figures, model card", BUNDLE_SHOW, commands.bundle_show),
        ("verify", "check every file, replay the image", BUNDLE_VERIFY, commands.bundle_verify),
    ):
        action = _add(actions, name, summary, description, run)
        action.add_argument(
            "folder",
            nargs="?",
            type=Path,
            metavar="DIR",
            help="folder of the bundle (default: the bundle that ships)",
        )
    summary = "convert a bundle of a release before 0.8, in its folder"
    upgrade = _add(actions, "upgrade", summary, BUNDLE_UPGRADE, commands.bundle_upgrade)
    upgrade.add_argument("folder", type=Path, metavar="DIR", help="folder of the bundle")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration, TOML (default: none)"
    )


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="state folder of the service (default: ~/.local/state/nemt-dicom)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="folder of a model bundle (default: the bundle that ships)",
    )


if __name__ == "__main__":
    sys.exit(main())
