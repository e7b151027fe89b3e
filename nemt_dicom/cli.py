"""`nemt-dicom`: the command line. The only file that prints, parses options or sets exit codes."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nemt_dicom import __version__
from nemt_dicom.config import Settings, load_settings
from nemt_dicom.errors import BadOutput, ConfigError, NemtError, Refused, StateInUse
from nemt_dicom.files import write_whole

EXIT_OK, EXIT_FAILED, EXIT_TEMPORARY, EXIT_CONFIG, EXIT_INTERRUPTED = 0, 1, 75, 78, 130
"""EX_TEMPFAIL and EX_CONFIG of sysexits.h, SIGINT as a shell counts it; argparse exits with 2."""

NOTICE = "For research. Not a medical device, not for diagnosis."

EPILOG = """\
start here:
  nemt-dicom demo                          one radiograph through the real service
  nemt-dicom explain chest.dcm --out out   no network: file in, SEG and SC out
  nemt-dicom serve                         listen on 127.0.0.1:11112 as NEMT
  nemt-dicom serve --config nemt-dicom.toml
  nemt-dicom jobs list                     what was received and what became of it

exit codes: 0 done, 1 failed, 2 wrong usage, 75 the state folder is in use, 78 configuration,
130 interrupted (serve: 0)
"""

BUNDLE_DESCRIPTION = """\
A bundle is a folder that holds a trained model and everything that explains with it: manifest.json,
model.safetensors, a golden image with its recorded answer, MODEL_CARD.md, and evaluation.json with
the figures of nemt-eval. Its model digest is made from what decides an explanation. It stands in
every result, and figures do not change it."""
BUNDLE_EPILOG = """\
examples:
  nemt-dicom bundle show                     the bundle that ships
  nemt-dicom bundle verify runs/pneumonia    before it is served
  nemt-dicom bundle upgrade runs/pneumonia   a bundle of release 0.2 to 0.7

exit codes: 0 done, 1 the bundle is damaged or cannot be read, 2 wrong usage
"""
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="receive, explain, send back")
    _add_config(serve)
    serve.add_argument("--port", type=int, metavar="N", help="listen on this port")
    serve.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle")
    serve.set_defaults(run=_serve)

    demo = commands.add_parser(
        "demo", help="send a radiograph through the real service on this machine"
    )
    demo.add_argument(
        "files", nargs="*", type=Path, metavar="DICOM_FILE", help="default: a public radiograph"
    )
    demo.add_argument("--out", type=Path, default=Path("nemt-demo"), metavar="DIR")
    demo.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle")
    demo.set_defaults(run=_demo)

    explain = commands.add_parser("explain", help="explain files without a network")
    explain.add_argument("files", nargs="+", type=Path, metavar="FILE")
    explain.add_argument("--out", type=Path, required=True, metavar="DIR")
    explain.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle")
    explain.add_argument("--config", type=Path, metavar="FILE", help="nemt-dicom.toml")
    explain.set_defaults(run=_explain)

    _add_jobs(commands)

    check = commands.add_parser("check-config", help="validate a configuration file")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run=_check_config)

    _add_bundle(commands)
    return parser


def _add_jobs(commands: Commands) -> None:
    jobs = commands.add_parser("jobs", help="what was received and what became of it")
    kinds = jobs.add_subparsers(required=True, metavar="list|show|retry")
    listing = kinds.add_parser("list", help="one line an instance, oldest first")
    _add_config(listing)
    listing.add_argument("--json", action="store_true", help="an array for programs")
    listing.set_defaults(run=_jobs_list)
    show = kinds.add_parser("show", help="one instance: evidence, outputs, deliveries")
    show.add_argument("key", metavar="SOP_INSTANCE_UID", help="or the name the log gives it")
    _add_config(show)
    show.add_argument("--json", action="store_true", help="an array for programs")
    show.set_defaults(run=_jobs_show)
    retry = kinds.add_parser(
        "retry", help="explain what is dead again, send what was given up or never sent"
    )
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "keys",
        nargs="*",
        default=[],
        metavar="SOP_INSTANCE_UID",
        help="or the name the log gives it",
    )
    which.add_argument("--all", action="store_true", help="every instance")
    _add_config(retry)
    retry.set_defaults(run=_jobs_retry)


def _add_bundle(commands: Commands) -> None:
    bundle = commands.add_parser(
        "bundle",
        help="look at a model bundle, check it, convert it",
        description=BUNDLE_DESCRIPTION,
        epilog=BUNDLE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = bundle.add_subparsers(required=True, metavar="show|verify|upgrade")
    for name, run, text in (
        ("show", _bundle_show, "thresholds, digests, checks, figures and model card"),
        ("verify", _bundle_verify, "check every digest and replay the golden image"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument(
            "folder", nargs="?", type=Path, metavar="DIR", help="default: the bundle that ships"
        )
        action.set_defaults(run=run)
    text = "convert a bundle of a release before 0.8, in its folder"
    upgrade = actions.add_parser("upgrade", help=text, description=BUNDLE_UPGRADE)
    upgrade.add_argument("folder", type=Path, metavar="DIR")
    upgrade.set_defaults(run=_bundle_upgrade)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="nemt-dicom.toml")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state folder")


def _settings(options: argparse.Namespace) -> Settings:
    overrides: dict[str, dict[str, Any]] = {}
    for section, key, name in (
        ("state", "dir", "state"),
        ("listener", "port", "port"),
        ("explanation", "bundle", "bundle"),
    ):
        value = getattr(options, name, None)
        if value is not None:
            overrides[section] = {key: value}
    return load_settings(getattr(options, "config", None), overrides=overrides)


def _serve(options: argparse.Namespace) -> int:
    from nemt_dicom.service.serve import serve  # noqa: PLC0415  torch loads only where it is needed

    return serve(_settings(options))


def _demo(options: argparse.Namespace) -> int:
    from nemt_dicom.demo import demo_file, run_demo  # noqa: PLC0415

    console = _plain()
    console.print(f"NEMt DICOM {__version__}. {NOTICE}")
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=not console.is_terminal,
    ) as progress:
        task = progress.add_task("starting", total=None)

        def report(text: str, done: int, total: int) -> None:
            progress.update(task, description=text, completed=done, total=total)

        _make_folder(options.out)
        files = options.files or [demo_file()]
        named = dict(zip(_distinct_names(files), files, strict=True))
        results = run_demo(named, options.out, options.bundle, report)
    console.print("explain_below_threshold is on: the mask is drawn even where p is low.")
    for result in results:
        console.print(_demo_table(result))
    return EXIT_OK


def _demo_table(result: Any) -> Table:
    table = Table(title=result.name, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in result.rows():
        table.add_row(label, value)
    return table


def _explain(options: argparse.Namespace) -> int:
    from nemt_dicom.jobs import folding_table  # noqa: PLC0415
    from nemt_dicom.model.bundle import Bundle  # noqa: PLC0415
    from nemt_dicom.model.explainer import Explainer  # noqa: PLC0415
    from nemt_dicom.outputs.secondary_capture import as_png  # noqa: PLC0415
    from nemt_dicom.pipeline import build_outputs, content_digest, read_source  # noqa: PLC0415

    settings = _settings(options)
    explainer = Explainer(Bundle.load_served(settings.explanation.bundle), settings.explanation)
    _make_folder(options.out)
    console = Console(highlight=False)
    table = folding_table("file", "verdict", "p", "occluded", "kept", "written")
    failed = 0
    names = _distinct_names(options.files)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for file, name in progress.track(
            list(zip(options.files, names, strict=True)), description="explaining"
        ):
            try:
                data = file.read_bytes()
                source = read_source(data, settings.input)
                (explanation,) = explainer.explain([source.radiograph])
                outputs = build_outputs(
                    source,
                    explanation,
                    settings=settings.output,
                    digest=content_digest(data),
                    received=_modified(file),
                )
                for output, data in outputs:
                    write_whole(options.out / f"{name}.{output.kind}.dcm", data)
                    if output.kind == "sc":
                        write_whole(options.out / f"{name}.png", as_png(data))
            except (Refused, BadOutput, OSError) as error:
                failed += 1
                reason = error.strerror if isinstance(error, OSError) else str(error)
                table.add_row(file.name, Text(reason or "unreadable", "yellow"))
                continue
            e = explanation.evidence
            figures = [f"{v:.3f}" for v in (e.probability, e.occluded, e.kept)]
            written = f"{name}.{{{','.join(o.kind for o, _ in outputs)}}}.dcm, {name}.png"
            table.add_row(file.name, explanation.verdict.value, *figures, written)
    _whole().print(table)
    console.print(NOTICE)
    return EXIT_FAILED if failed else EXIT_OK


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NemtError(f"--out {out}: {error.strerror}; name a folder that can be made") from error


def _modified(file: Path) -> datetime:
    """When the file was written: as its time of receipt, it gives the same bytes every time."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _distinct_names(files: Sequence[Path]) -> list[str]:
    """Stems for the outputs, numbered where two inputs share one."""
    names: list[str] = []
    for file in files:
        name, number = file.stem, 2
        while name in names:
            name, number = f"{file.stem}-{number}", number + 1
        names.append(name)
    return names


def _jobs_list(options: argparse.Namespace) -> int:
    from nemt_dicom import jobs  # noqa: PLC0415

    with jobs.opened(_settings(options)) as store:
        instances = store.instances()
    if options.json:
        _whole().out(jobs.as_json(instances))
    else:
        _whole().print(jobs.overview(instances))
    return EXIT_OK


def _jobs_show(options: argparse.Namespace) -> int:
    from nemt_dicom import jobs  # noqa: PLC0415

    with jobs.opened(_settings(options)) as store:
        found = store.instances(sop_instance_uid=jobs.find(store, options.key))
    if options.json:
        _whole().out(jobs.as_json(found))
        return EXIT_OK
    for instance in found:
        for table in jobs.details(instance):
            _whole().print(table)
    return EXIT_OK


def _jobs_retry(options: argparse.Namespace) -> int:
    from nemt_dicom import jobs  # noqa: PLC0415

    keys = None if options.all else options.keys
    for line in jobs.retry(_settings(options), keys, by_file=options.config is not None):
        print(line)
    return EXIT_OK


def _plain() -> Console:
    """A console that shows text as it is: what others wrote must not be read as markup."""
    return Console(highlight=False, markup=False)


def _whole() -> Console:
    """As `_plain`, but for another program, not a terminal, no line is broken."""
    width = None if sys.stdout.isatty() else 10_000
    return Console(highlight=False, markup=False, width=width)


def _check_config(options: argparse.Namespace) -> int:
    settings = load_settings(options.file)
    bundle = settings.explanation.bundle
    if bundle is not None and not bundle.is_dir():
        raise ConfigError(f"{options.file}: explanation.bundle = {str(bundle)!r}: no such folder")
    console = _plain()
    console.print(f"{options.file}: valid")
    console.print_json(json.dumps(settings.model_dump(mode="json")))
    return EXIT_OK


def _bundle_show(options: argparse.Namespace) -> int:
    from nemt_dicom import bundles  # noqa: PLC0415
    from nemt_dicom.model.bundle import Bundle  # noqa: PLC0415

    bundle = Bundle.load(options.folder)
    console = _plain()
    console.print(bundles.overview(bundle))
    if bundle.evaluation is not None:
        console.print(bundles.answers(bundle.evaluation))
    console.print(bundles.figures(bundle.evaluation))
    console.print(Markdown(bundle.model_card))
    return EXIT_OK


def _bundle_verify(options: argparse.Namespace) -> int:
    from nemt_dicom.config import ExplanationSettings  # noqa: PLC0415
    from nemt_dicom.model.bundle import Bundle  # noqa: PLC0415
    from nemt_dicom.model.explainer import Explainer  # noqa: PLC0415

    bundle = Bundle.load(options.folder)
    explainer = Explainer(bundle, ExplanationSettings())
    print(f"{bundle.folder}: every digest is right, the golden image gives the recorded answer")
    print(f"model {bundle.model_digest}, device {explainer.device_name}")
    return EXIT_OK


def _bundle_upgrade(options: argparse.Namespace) -> int:
    from nemt_dicom.model.upgrade import upgrade  # noqa: PLC0415

    upgraded = upgrade(options.folder)
    bundle = upgraded.bundle
    if not upgraded.changed:
        print(f"{bundle.folder}: has schema 3 already, nothing to do")
        return EXIT_OK
    print(f"{bundle.folder}: converted to schema 3, model {bundle.model_digest}")
    if upgraded.figures_lost:
        print(
            "its figures have the form of an early release and are left out; measure anew: "
            f"nemt-eval --bundle {bundle.folder} --data DIR --out DIR --into-bundle"
        )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
