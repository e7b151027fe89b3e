"""nemt-train: labelled radiographs in, a bundle for `nemt-dicom serve` out."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from nemt_dicom.errors import NemtError

from .config import TrainingConfig
from .report import differences_table, figures_table, localisation_table
from .train import run

DESCRIPTION = """\
Trains a classifier for one label and an explanation module on its features, and writes a bundle
that `nemt-dicom serve --bundle DIR` and `nemt-dicom explain --bundle DIR` use. Research only.

Data folders are recognised by the files they hold; give --data once for each:
  RSNA 2018        stage_2_train_images/*.dcm, stage_2_train_labels.csv, splits.csv
                   (patientId, nih_patient_id, split)
  NIH ChestX-ray14 images/*.png, Data_Entry_2017_v2020.csv with a column `split`
The test split is used for the final figures only; 15 % of the training patients are validation.
Boxes never take part in training."""
EPILOG = """\
example:
  nemt-train --target pneumonia --data nih-mini --data rsna-mini --out pneumonia-bundle

DIR gets the bundle's five files; DIR/run gets metrics.csv, curves.png and masks.png.
exit status: 0 done, 1 failed, 2 wrong usage"""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class _Bars:
    """Progress on the terminal: a bar a stage, with rate and time left."""

    def __init__(self, console: Console) -> None:
        self.bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self.task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        if self.task is not None:
            done = self.bars.tasks[self.task].completed
            self.bars.update(self.task, total=done)  # it may have stopped early
        self.task = self.bars.add_task(name, total=total, text="")

    def step(self, text: str = "") -> None:
        if self.task is not None:
            self.bars.update(self.task, advance=1, text=text)

    def note(self, text: str) -> None:
        self.bars.console.print(text, highlight=False)


def build_parser() -> argparse.ArgumentParser:
    """The command line; every default is the recipe of `TrainingConfig`."""
    parser = argparse.ArgumentParser(
        prog="nemt-train",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = {field.name: field.default for field in fields(TrainingConfig)}

    def option(group: argparse._ArgumentGroup, flag: str, name: str, text: str) -> None:
        kind = type(default[name])
        group.add_argument(
            flag,
            dest=name,
            type=kind,
            default=default[name],
            metavar={int: "N", float: "X"}.get(kind, "NAME"),
            help=f"{text} (default: {default[name]})",
        )

    data = parser.add_argument_group("data")
    data.add_argument("--target", required=True, help="label to explain, such as pneumonia")
    data.add_argument(
        "--data", required=True, action="append", type=Path, metavar="DIR", help="a data folder"
    )
    data.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="new folder for the bundle"
    )
    target = parser.add_argument_group("target model")
    option(target, "--backbone", "backbone", "timm model")
    target.add_argument(
        "--random-init",
        dest="pretrained",
        action="store_false",
        help="start from random weights instead of ImageNet's",
    )
    option(target, "--size", "size", "side of the model's input in pixels")
    option(target, "--classifier-epochs", "classifier_epochs", "epochs at most")
    option(target, "--classifier-lr", "classifier_lr", "largest step size of AdamW")
    option(target, "--label-smoothing", "label_smoothing", "0 to below 0.5")
    target.add_argument(
        "--no-mirror",
        dest="mirror",
        action="store_false",
        help="augmentation does not exchange left and right",
    )
    mask = parser.add_argument_group("explanation module")
    option(mask, "--mask-epochs", "mask_epochs", "epochs; the best validation loss is kept")
    option(mask, "--area-weight", "area_weight", "λ₁, the price of a mask's area")
    option(mask, "--preservation", "preservation", "weight of: the evidence alone keeps p")
    mask.add_argument(
        "--fill",
        choices=("black", "mean", "blur"),
        default=default["fill"],
        help=f"what takes the place of removed pixels (default: {default['fill']})",
    )
    mask.add_argument(
        "--response",
        choices=("evidence", "probability"),
        default=default["response"],
        help=f"what has to fall; the paper's code: probability (default: {default['response']})",
    )
    option(mask, "--exponent", "exponent", "of the fall; the paper: 2")
    mask.add_argument(
        "--any-change",
        dest="fall_only",
        action="store_false",
        help="reward a rise of p like a fall, as the paper does",
    )
    run_group = parser.add_argument_group("run")
    option(run_group, "--batch", "batch", "images a step")
    option(run_group, "--seed", "seed", "the same seed, threads and libraries: the same bundle")
    option(run_group, "--threads", "threads", "CPU threads")
    run_group.add_argument(
        "--device", choices=("cpu", "cuda"), default=default["device"], help="(default: cpu)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `nemt-train`; returns the exit status."""
    given = vars(build_parser().parse_args(arguments))
    folders, out = given.pop("data"), given.pop("out")
    console = Console(stderr=True)
    reporter = _Bars(console)
    try:
        with reporter.bars:
            bundle = run(TrainingConfig(**given), folders, out, reporter)
    except NemtError as error:
        print(f"nemt-train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nemt-train: stopped; no bundle was finished", file=sys.stderr)
        return 130
    metrics = bundle.manifest.metrics
    screen = Console()
    screen.print(Markdown(figures_table(metrics)))
    if "localisation" in metrics:
        screen.print(Markdown(localisation_table(metrics)))
        screen.print(Markdown(differences_table(metrics)))
    print(f"bundle {bundle.digest[:12]} in {out}; model card: {out / 'MODEL_CARD.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
