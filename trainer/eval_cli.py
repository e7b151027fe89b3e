"""nemt-eval: how good a bundle's explanations are, beside the methods used otherwise."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from nemt_dicom.errors import DataError, NemtError
from nemt_dicom.model.bundle import Bundle

from .data.cases import Dataset, find_cases_to_evaluate
from .data.examples import default_cache
from .data.tables import SPLITS
from .evaluation.checks import verdict
from .evaluation.evaluate import evaluate
from .evaluation.methods import METHODS
from .evaluation.plan import MEAN_OF_BOXES, Evaluation, Plan, known_methods
from .progress import Bars, Progress
from .provenance import training_of
from .report.html import write_comparison, write_report
from .report.model_card import model_card
from .report.publish import evaluation_of, publish
from .report.tables import differences_table, figures_table, paper_table, time_table
from .seen_patients import require_unseen
from .training.precision import keep_memory, require_device
from .training.recipe import MOST_THREADS
from .training.recipe_file import recorded_recipe

DESCRIPTION = """\
Measures a bundle's explanations on labelled images that it was not trained on, and the methods that
one would use otherwise on the same images and the same classifier: where they lie, whether p falls
without what they name, whether they depend on the model, hold still, and say nothing where there is
nothing to say. Research only."""
EPILOG = """\
examples:
  nemt-eval --data rsna-mini --out report
  nemt-eval --bundle runs/melanoma --data ham10000-mini --out report
  nemt-eval --bundle runs/mine --data rsna --methods gradcam++,random --out quick
  nemt-eval --data rsna-mini --out report
  nemt-eval compare runs/a runs/b --data rsna-mini --out compared

--out gets report.html (one file), report.md, metrics.csv (a row an image and method), summary.json
and the pictures. Maps and scores are kept in the cache: a second call computes only what is new,
and a call that was stopped goes on with --resume. Without a GPU a method that takes over 5 s an
image sees 20 images, chosen by a seed.
exit status: 0 done (whatever the checks say), 1 failed, 2 wrong usage, 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of an evaluation."""
    parser = argparse.ArgumentParser(
        prog="nemt-eval",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="model bundle (default: the one that ships)"
    )
    _shared(parser)
    parser.add_argument(
        "--quick", action="store_true", help="the paper's table only, no further tests"
    )
    parser.add_argument(
        "--into-bundle",
        action="store_true",
        help="write the figures into the bundle's evaluation.json and model card",
    )
    return parser


def build_compare_parser() -> argparse.ArgumentParser:
    """The command line of `nemt-eval compare`."""
    parser = argparse.ArgumentParser(
        prog="nemt-eval compare",
        description="Holds the explanation modules of two bundles against each other, on the same "
        "images, paired.",
    )
    parser.add_argument("first", type=Path, metavar="A", help="model bundle")
    parser.add_argument("second", type=Path, metavar="B", help="model bundle")
    _shared(parser)
    return parser


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        dest="folders",
        required=True,
        action="append",
        type=Path,
        metavar="DIR",
        help="a data folder as nemt-train takes it, or a labels.csv; may be given several times",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="new folder for the report"
    )
    parser.add_argument(
        "--methods",
        metavar="A,B,...",
        help=f"of {', '.join([*METHODS, MEAN_OF_BOXES])}; relax, u_relax for representations "
        "(default: all)",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=SPLITS,
        help="which images (default: test, of patients whom the bundle has not seen; all where "
        "the data have no split)",
    )
    parser.add_argument("--resume", action="store_true", help="--out is there already: go on")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave missing and unreadable images out"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads")
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        metavar="DIR",
        help=f"images, maps and scores, for every run (default: {default_cache()})",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `nemt-eval`; returns the exit status."""
    keep_memory()
    given = list(sys.argv[1:] if arguments is None else arguments)
    comparing = given[:1] == ["compare"]
    options = (
        build_compare_parser().parse_args(given[1:])
        if comparing
        else build_parser().parse_args(given)
    )
    options.command = shlex.join(["nemt-eval", *given])
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        require_device(options.device)
        _set_threads(options.threads)
        _require_place(options.out, resume=options.resume)
        with Bars(Console(stderr=True)) as progress:
            text = _compare(options, progress) if comparing else _evaluate(options, progress)
    except NemtError as error:
        print(f"nemt-eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nemt-eval: stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
    screen = Console()
    if screen.is_terminal:
        screen.print(Markdown(text))
    else:
        print(text)
    return 0


def _set_threads(count: int) -> None:
    if not 0 <= count <= MOST_THREADS:
        raise DataError(f"--threads: 1 to {MOST_THREADS}, or 0 for PyTorch's own choice")
    if count:
        torch.set_num_threads(count)


def _evaluate(options: argparse.Namespace, progress: Progress) -> str:
    bundle = Bundle.load(options.bundle)
    if options.into_bundle and options.split != "test":
        raise DataError("a model card takes figures of the test split only: leave --split out")
    dataset = _dataset(bundle, options, progress)
    plan = Plan(
        methods=_methods(bundle, options),
        split=options.split,
        thorough=not options.quick,
        skip_bad=options.skip_bad,
    )
    found = evaluate(
        bundle, dataset, options.cache, device=options.device, progress=progress, plan=plan
    )
    progress.stage("report", 1)
    write_report(options.out, bundle, found, command=options.command)
    progress.step()
    parts = [figures_table(found.summary), paper_table(found.summary)]
    parts += [differences_table(found.summary), time_table(found.summary)]
    if options.into_bundle:
        card = model_card(bundle.manifest, found.summary)
        written = publish(bundle, evaluation_of(found.summary), card)
        parts.append(
            f"figures written into {written.folder}; the model is {written.model_digest[:12]}, as "
            "before"
        )
    parts.append(f"report: {options.out / 'report.html'}")
    parts.append(verdict(found.summary["checks"]))
    return "\n\n".join(parts)


def _compare(options: argparse.Namespace, progress: Progress) -> str:
    found: list[tuple[Bundle, Evaluation]] = []
    for folder in (options.first, options.second):
        bundle = Bundle.load(folder)
        dataset = _dataset(bundle, options, progress)
        methods = _methods(bundle, options) if options.methods else ()
        plan = Plan(methods=methods, split=options.split, thorough=False, skip_bad=options.skip_bad)
        evaluation = evaluate(
            bundle, dataset, options.cache, device=options.device, progress=progress, plan=plan
        )
        found.append((bundle, evaluation))
    return write_comparison(options.out, *found, command=options.command)


def _dataset(bundle: Bundle, options: argparse.Namespace, progress: Progress) -> Dataset:
    training, data = training_of(bundle)
    dataset = find_cases_to_evaluate(
        options.folders,
        target=data.label,
        split=options.split,
        photographs="photograph" in bundle.manifest.source_kinds,
        validation_share=recorded_recipe(training.recipe).data.validation_share,
        trained_on=data.sources,
        skip_bad=options.skip_bad,
    )
    if options.split == "test":
        unsure = require_unseen(bundle, [case for case in dataset.cases if case.split == "test"])
        dataset = replace(dataset, notes=(*dataset.notes, *unsure))
    for note in dataset.notes:
        progress.note(note)
    return dataset


def _methods(bundle: Bundle, options: argparse.Namespace) -> tuple[str, ...]:
    known = (*known_methods(bundle, options.device), MEAN_OF_BOXES)
    if options.methods is None:
        return known
    chosen = tuple(name.strip() for name in options.methods.split(",") if name.strip())
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise DataError(
            f"--methods: {', '.join(unknown)} is not known for this bundle; there are: "
            f"{', '.join(known)}"
        )
    return chosen


def _require_place(out: Path, *, resume: bool) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is a file; name a folder")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be made ({error.strerror}); choose another --out") from error
    if any(out.iterdir()) and not resume:
        raise DataError(f"{out} is not empty; choose a new folder, or go on with --resume")


if __name__ == "__main__":
    sys.exit(main())
