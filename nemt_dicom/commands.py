"""The commands of `nemt-dicom`: each takes the parsed options, prints, and returns an exit code.

cli.py parses the options and turns errors into exit codes. A command imports its code itself, so
that torch is loaded only if it is needed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nemt_dicom import __version__
from nemt_dicom.config import Settings, load_settings
from nemt_dicom.errors import BadOutput, ConfigError, NemtError, Refused
from nemt_dicom.files import write_whole

EXIT_OK = 0
EXIT_FAILED = 1
NOTICE = "For research. Not a medical device, not for diagnosis."


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


def serve(options: argparse.Namespace) -> int:
    """Runs the service until SIGTERM or SIGINT."""
    from nemt_dicom.service import serve as service  # noqa: PLC0415

    return service.serve(_settings(options))


def demo(options: argparse.Namespace) -> int:
    """Sends radiographs through a service on this machine."""
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
        named = dict(zip(distinct_names(files), files, strict=True))
        results = run_demo(named, options.out, options.bundle, report)
    console.print("explain_below_threshold is on: the mask is drawn even if p is low.")
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


def explain(options: argparse.Namespace) -> int:
    """Explains files. A file that fails has a row with its reason; the rest goes on."""
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
    names = distinct_names(options.files)
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
    """The time of the file's last change.

    It stands for the time of receipt, so that the same file gives the same bytes every time.
    """
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def distinct_names(files: Sequence[Path]) -> list[str]:
    """A stem for the outputs of each file. If two files share a stem, it gets a number."""
    names: list[str] = []
    for file in files:
        name, number = file.stem, 2
        while name in names:
            name, number = f"{file.stem}-{number}", number + 1
        names.append(name)
    return names


def jobs_list(options: argparse.Namespace) -> int:
    """Shows one line for each instance."""
    from nemt_dicom import jobs  # noqa: PLC0415

    with jobs.opened(_settings(options)) as store:
        instances = store.instances()
    if options.json:
        _whole().out(jobs.as_json(instances))
    else:
        _whole().print(jobs.overview(instances))
    return EXIT_OK


def jobs_show(options: argparse.Namespace) -> int:
    """Shows one instance, or more if other content came with its UID."""
    from nemt_dicom import jobs  # noqa: PLC0415

    with jobs.opened(_settings(options)) as store:
        instances = store.instances(sop_instance_uid=jobs.find(store, options.key))
    if options.json:
        _whole().out(jobs.as_json(instances))
        return EXIT_OK
    for instance in instances:
        for table in jobs.details(instance):
            _whole().print(table)
    return EXIT_OK


def jobs_retry(options: argparse.Namespace) -> int:
    """Tries dead instances and dead deliveries again."""
    from nemt_dicom import jobs  # noqa: PLC0415

    keys = None if options.all else options.keys
    for line in jobs.retry(_settings(options), keys, by_file=options.config is not None):
        print(line)
    return EXIT_OK


def _plain() -> Console:
    """A console that shows text as it is: received text must not be read as markup."""
    return Console(highlight=False, markup=False)


def _whole() -> Console:
    """As `_plain`. If standard output is no terminal but another program, no line is broken."""
    width = None if sys.stdout.isatty() else 10_000
    return Console(highlight=False, markup=False, width=width)


def check_config(options: argparse.Namespace) -> int:
    """Validates a configuration file and shows the settings that result."""
    settings = load_settings(options.file)
    bundle = settings.explanation.bundle
    if bundle is not None and not bundle.is_dir():
        raise ConfigError(f"{options.file}: explanation.bundle = {str(bundle)!r}: no such folder")
    console = _plain()
    console.print(f"{options.file}: valid")
    console.print_json(json.dumps(settings.model_dump(mode="json")))
    return EXIT_OK


def bundle_show(options: argparse.Namespace) -> int:
    """Shows a bundle: thresholds, digests, checks, figures, model card."""
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


def bundle_verify(options: argparse.Namespace) -> int:
    """Checks every digest of a bundle and replays its golden image."""
    from nemt_dicom.config import ExplanationSettings  # noqa: PLC0415
    from nemt_dicom.model.bundle import Bundle  # noqa: PLC0415
    from nemt_dicom.model.explainer import Explainer  # noqa: PLC0415

    bundle = Bundle.load(options.folder)
    explainer = Explainer(bundle, ExplanationSettings())
    print(f"{bundle.folder}: every digest is right, the golden image gives the recorded answer")
    print(f"model {bundle.model_digest}, device {explainer.device_name}")
    return EXIT_OK


def bundle_upgrade(options: argparse.Namespace) -> int:
    """Converts a bundle of schema 2 in its folder."""
    from nemt_dicom.model.upgrade import upgrade  # noqa: PLC0415

    upgraded = upgrade(options.folder)
    bundle = upgraded.bundle
    if not upgraded.changed:
        print(f"{bundle.folder}: has schema 3 already, nothing to do")
        return EXIT_OK
    print(f"{bundle.folder}: converted to schema 3, model {bundle.model_digest}")
    if upgraded.figures_lost:
        print(
            "its figures have the form of an early release and are left out; measure them again: "
            f"nemt-eval --bundle {bundle.folder} --data DIR --out DIR --into-bundle"
        )
    return EXIT_OK
