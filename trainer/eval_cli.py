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
from .evaluation.choice import known_keys
from .evaluation.evaluate import evaluate
from .evaluation.methods import METHODS
from .evaluation.results import Measured
from .evaluation.settings import MEAN_OF_BOXES, EvaluationSettings
from .options import as_help
from .progress import Bars, Progress
from .provenance import training_of
from .report.html import write_report
from .report.model_card import model_card
from .report.publish import publish
from .report.tables import differences_table, figures_table, paper_table, time_table
from .report.two_bundles import write_comparison
from .seen_patients import require_unseen
from .training.precision import keep_memory, require_device
from .training.recipe import MOST_THREADS
from .training.recipe_file import recorded_recipe

DEFAULTS = EvaluationSettings()
DESCRIPTION = """\
Measures how good the explanations of a bundle are. It asks the bundle about labelled images that it
was not trained on. On the same images, and for the same classifier, it asks other explanation
methods. The report answers questions such as: Does the mask lie where people saw the finding? Does
p fall if the marked pixels are removed? Does the mask depend on the model? Does it stay the same if
the image changes a little? Is it empty if there is nothing to explain? Research only."""
EPILOG = f"""\
examples:
  nemt-eval --data rsna-mini --out report
      the bundle that ships, all methods, all tests
  nemt-eval --bundle runs/mine --data rsna --methods gradcam++,random --quick --out quick
      two other methods, no further tests: minutes
  nemt-eval --bundle runs/mine --data rsna-mini --into-bundle --out published
      writes the figures into the bundle and its model card, too
  nemt-eval compare runs/a runs/b --data rsna-mini --out compared
      two bundles on the same images

what --out gets:
  report.html     the report, in one file
  report.md       the same as text
  metrics.csv     a row for each image and method
  summary.json    every figure
  *.png           the pictures of the report

Maps and scores are kept in the cache. A second call computes only what is new, and a call that was
stopped goes on with --resume. Without a GPU, a method that takes more than \
{DEFAULTS.slow_seconds:g} s an image
is asked for {DEFAULTS.subset} images only, chosen by a seed; the report says so.

exit status: 0 done (whatever the answers are), 1 failed, 2 wrong usage, 130 interrupted"""


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
    _shared(parser, methods="all")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the figures of the paper's table; without removal curves, subgroups and the "
        "tests of model dependence, stability and silence",
    )
    parser.add_argument(
        "--into-bundle",
        action="store_true",
        help="also write the figures into the bundle's evaluation.json and model card; its model "
        "digest stays",
    )
    return parser


def build_compare_parser() -> argparse.ArgumentParser:
    """The command line of `nemt-eval compare`."""
    parser = argparse.ArgumentParser(
        prog="nemt-eval compare",
        description="Compares the explanation modules of two bundles on the same images. The "
        "difference of each figure is paired by image.",
    )
    parser.add_argument("first", type=Path, metavar="A", help="model bundle")
    parser.add_argument("second", type=Path, metavar="B", help="model bundle")
    _shared(parser, methods="none")
    return parser


def _shared(parser: argparse.ArgumentParser, *, methods: str) -> None:
    """The options that an evaluation and a comparison have in common.

    methods: which ones take part if none is named, in words.
    """
    _data_options(parser, methods)
    _computing_options(parser)


def _data_options(parser: argparse.ArgumentParser, methods: str) -> None:
    parser.add_argument(
        "--data",
        dest="folders",
        required=True,
        action="append",
        type=Path,
        metavar="DIR",
        help="labelled images: a data folder as for nemt-train, or a labels.csv; may be repeated",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="new folder for the report"
    )
    parser.add_argument(
        "--methods",
        metavar="A,B,...",
        help="methods to compare with, separated by commas; there are: "
        f"{', '.join([*METHODS, MEAN_OF_BOXES])}; for representations relax and u_relax, too "
        f"(default: {methods})",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=SPLITS,
        help="which images (default: test, and only patients whom the bundle has not seen); data "
        "without a split are used whole if the bundle was not trained on such data, else a hash of "
        "the patient tells the split",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out missing and unreadable images, with a note, instead of stopping",
    )


def _computing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", action="store_true", help="go on in a folder --out that has files already"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute (default: auto, a GPU if there is one)",
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads (default: PyTorch's)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=default_cache(),
        metavar="DIR",
        help="folder that keeps images, maps and scores for later calls "
        f"(default: {as_help(default_cache())})",
    )


def main(arguments: Sequence[str] | None = None, *, settings: EvaluationSettings = DEFAULTS) -> int:
    """Entry point of `nemt-eval`; returns the exit status.

    settings: of the evaluation, but for the ones that the command line names.
    """
    keep_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    comparing = words[:1] == ["compare"]
    options = (
        build_compare_parser().parse_args(words[1:])
        if comparing
        else build_parser().parse_args(words)
    )
    options.command = shlex.join(["nemt-eval", *words])
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        require_device(options.device)
        _set_threads(options.threads)
        _require_place(options.out, resume=options.resume)
        with Bars(Console(stderr=True)) as progress:
            run = _compare if comparing else _evaluate
            text = run(options, settings, progress)
    except (NemtError, OSError) as error:
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


def _evaluate(options: argparse.Namespace, settings: EvaluationSettings, progress: Progress) -> str:
    bundle = Bundle.load(options.bundle)
    if options.into_bundle and options.split != "test":
        raise DataError("a model card takes figures of the test split only: leave --split out")
    dataset = _dataset(bundle, options, progress)
    further = {"methods": _methods(bundle, options), "thorough": not options.quick}
    measured = _measure(bundle, dataset, options, settings.model_copy(update=further), progress)
    results = measured.results
    progress.stage("report", 1)
    write_report(options.out, bundle, measured, command=options.command)
    progress.step()
    parts: list[str] = [figures_table(results), paper_table(results)]
    parts += [differences_table(results), time_table(results)]
    if options.into_bundle:
        card = model_card(bundle.manifest, bundle.architecture, results)
        written = publish(bundle, results, card)
        parts.append(
            f"figures written into {written.folder}; the model is {written.model_digest[:12]}, as "
            "before"
        )
    parts.append(f"report: {options.out / 'report.html'}")
    parts.append(verdict(results.checks))
    return "\n\n".join(parts)


def _compare(options: argparse.Namespace, settings: EvaluationSettings, progress: Progress) -> str:
    pairs: list[tuple[Bundle, Measured]] = []
    for folder in (options.first, options.second):
        bundle = Bundle.load(folder)
        dataset = _dataset(bundle, options, progress)
        methods = _methods(bundle, options) if options.methods else ()
        quick = settings.model_copy(update={"methods": methods, "thorough": False})
        pairs.append((bundle, _measure(bundle, dataset, options, quick, progress)))
    return write_comparison(options.out, *pairs, command=options.command)


def _measure(
    bundle: Bundle,
    dataset: Dataset,
    options: argparse.Namespace,
    settings: EvaluationSettings,
    progress: Progress,
) -> Measured:
    chosen = {"split": options.split, "skip_bad": options.skip_bad}
    return evaluate(
        bundle,
        dataset,
        options.cache,
        device=options.device,
        progress=progress,
        settings=settings.model_copy(update=chosen),
    )


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
    known = known_keys(bundle)
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
