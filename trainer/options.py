"""The options of nemt-train, with their help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .data.examples import default_cache
from .training.recipe_file import LEFT_OUT, PRESETS, RENAMED

DESCRIPTION = """\
Trains a classifier for one label, and an explanation module that draws which part of an image its
answer depends on. Research only.

goes in     folders of labelled images (--data) and the label to explain (--target)
comes out   a bundle in --out: the two networks with their thresholds and figures, in one folder
            that `nemt-dicom serve --bundle DIR` and `nemt-dicom explain --bundle DIR` use
how long    `--dry-run` measures it. A few hundred images take about 20 minutes on two CPU cores;
            the paper's recipe on all of RSNA takes hours on a GPU
then        read DIR/MODEL_CARD.md; `nemt-eval --bundle DIR --data ...` asks whether the masks are
            right

Data folders are recognised by the files they hold; give --data once for each:
  RSNA 2018         stage_2_train_images/*.dcm, stage_2_train_labels.csv; patients and splits from
                    splits.csv (patientId, nih_patient_id, split) or from the set's mapping file
  NIH ChestX-ray14  images/*.png, Data_Entry_2017_v2020.csv; any of its 14 labels is a target
  HAM10000          images/*.jpg, masks/, HAM10000_metadata.csv; any of its 7 classes is a target
  plain CSV         labels.csv (path, label, patient_id; split and kind if you have them)
All images of a patient are in one split: the table's column `split` says which, otherwise a stable
hash of the patient does. 15 % of the training patients are for validation; every choice is made on
them. The test split is for the final figures only. Boxes and lesion masks never take part in
training."""
EPILOG = """\
examples:
  cd rsna && nemt-train --target pneumonia
  nemt-train --target pneumonia --data nih-mini --data rsna-mini --dry-run
  nemt-train --target pneumonia --data nih-mini --data rsna-mini
  nemt-train --target melanoma --data ham10000-mini --out runs/melanoma
  nemt-train --target pneumonia --data rsna --recipe paper --initial-weights resnet50.safetensors \\
             --out runs/paper
  nemt-train --target effusion --data nih --target-model mine.safetensors --output 4 \\
             --set target_model.backbone=resnet50 --out runs/mine
  nemt-train --target pneumonia --data rsna-mini --recipe nem-u --out runs/representation
  nemt-train --target pneumonia --data rsna-mini --ablation --set explanation_module.epochs=3 \\
             --out runs/ablation
  torchrun --nproc-per-node 4 -m trainer.cli --device cuda --target pneumonia --data rsna --out DIR

A recipe of your own: write one, change it, train by it.
  nemt-train --print-recipe > mine.toml
  nemt-train --recipe mine.toml --target pneumonia --data rsna-mini --out runs/mine

--out gets the files of the bundle, and a folder `run`: recipe.toml (the recipe with all changes),
train.log (what happened when, readable while it runs), metrics.csv, curves.png, a panel of masks
each epoch, comparison.png. If a run was stopped, the same command with --resume goes on, and gives
the same bundle.
exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted"""

KEPT = {"target", "device", "threads", "seed"}
"""Names of values of former recipes that still have an option of their own."""

SWITCHES = {
    "--random-init": "--set target_model.pretrained=false",
    "--no-occlusion": "--set target_model.occlusion=false",
    "--no-mirror": "--set augmentation.mirror=false",
    "--unbalanced": "--set explanation_module.balanced=false",
    "--unscaled": "--set explanation_module.scaled=false",
    "--any-change": "--set explanation_module.fall_only=false",
    "--no-follow": "--set explanation_module.follows=false",
    "--bfloat16": "--set run.bfloat16=true",
    "--no-bfloat16": "--set run.bfloat16=false",
}
"""Options without a value that 0.8.0 removed, and the option that does the same."""

GONE = {
    "--no-augment": "every run augments its images",
    "--compile": "no run compiles its networks",
    **{
        f"--{name.replace('_', '-')}": f"every run has {name} = {value}"
        for name, value in LEFT_OUT.items()
        if name != "augment"
    },
}
"""Options that 0.8.0 removed together with their effect, and what every run does now."""


def as_help(text: object) -> str:
    """A value as part of an option's help, in which argparse replaces what follows a %."""
    return str(text).replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """Refuses an option of an earlier release, and says what to write instead."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        for flag, value in _with_values(sys.argv[1:] if args is None else args):
            if new := new_spelling(flag, value):
                self.error(new)
        return super().parse_known_args(args, namespace)


def _with_values(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Each option with its value, from "--name=value" or "--name value"; "" if it has none."""
    pairs = []
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            pairs.append((flag, value if equals else "" if after.startswith("--") else after))
    return pairs


def new_spelling(flag: str, value: str = "") -> str:
    """What to write instead of an option of a release before 0.8.0; "" for any other option."""
    name = flag.removeprefix("--").replace("-", "_")
    if flag == "--preset":
        return f"--preset is now --recipe {value or 'NAME'}"
    if (flag, value) == ("--objective", "nem-u"):
        return "--objective nem-u is now --recipe nem-u, or --recipe paper-nem-u"
    if flag in SWITCHES:
        return f"{flag} is now {SWITCHES[flag]}"
    if flag in GONE:
        return f"{flag} was removed: {GONE[flag]}"
    if name in RENAMED and name not in KEPT:
        if name == "auxiliary" and value:
            value = f"""'["{'", "'.join(part.strip() for part in value.split(","))}"]'"""
        return f"{flag} is now --set {RENAMED[name]}={value or 'VALUE'}"
    return ""


def build_parser() -> argparse.ArgumentParser:
    """The command line. No option has a default: the recipe has the value of every other one."""
    parser = _Parser(
        prog="nemt-train",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _data_options(parser.add_argument_group("data"))
    _recipe_options(parser.add_argument_group("recipe: how it is trained"))
    _target_model_options(parser.add_argument_group("a target model that exists"))
    _run_options(parser.add_argument_group("run"))
    return parser


def _data_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--target", metavar="LABEL", help="the label to explain, such as pneumonia")
    group.add_argument(
        "--data",
        dest="folders",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder of labelled images, or a labels.csv; can be repeated (default: the current "
        "folder)",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the new folder that gets the bundle (default: runs/LABEL)",
    )
    group.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="the folder that keeps decoded images, so that later runs need not decode them again "
        f"(default: {as_help(default_cache())})",
    )
    group.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out images that are missing or cannot be read, instead of stopping",
    )


def _recipe_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help=f"the settings to train with: one of {', '.join(PRESETS)}, or a TOML file. default: "
        "the settings with the best figures, used if you name no recipe; paper: ResNet-50 and the "
        "paper's settings; nem-u and paper-nem-u: explain a representation instead of a label",
    )
    group.add_argument(
        "--set",
        dest="assignments",
        action="append",
        metavar="NAME=VALUE",
        help="change one value of the recipe, for example --set target_model.epochs=3; can be "
        "repeated; --print-recipe shows all names",
    )
    group.add_argument(
        "--print-recipe",
        action="store_true",
        help="print the recipe with all changes of this command line, each value with its meaning, "
        "and end",
    )


def _target_model_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--target-model",
        type=Path,
        metavar="FILE|BUNDLE",
        help="explain this trained classifier instead of training one: a file with its weights "
        "(safetensors or a torch checkpoint), or the folder of a bundle, whose target model gets a "
        "new explanation module",
    )
    group.add_argument(
        "--keep-module",
        action="store_true",
        help="with a bundle as --target-model: keep its explanation module, too, and train "
        "nothing; only the thresholds, the figures and the section [serving] of the recipe are new",
    )
    group.add_argument(
        "--output",
        metavar="N|NAME",
        help="the output of the target model to explain, by its index from 0 or by its name "
        "(default: the output named like the label)",
    )
    group.add_argument(
        "--output-names",
        metavar="A,B,...",
        help="the names of the outputs of a target model from a file, in order",
    )
    group.add_argument(
        "--activation",
        choices=("sigmoid", "softmax"),
        help="the function that makes probabilities of the outputs of a target model from a file: "
        "softmax if the classes exclude each other, otherwise sigmoid (default: sigmoid)",
    )
    group.add_argument(
        "--initial-weights",
        type=Path,
        metavar="FILE",
        help="start training the target model from the backbone weights in this file; its "
        "classification head starts untrained",
    )


def _run_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="show how many images there are, and how much memory and time the run needs; train "
        "nothing",
    )
    group.add_argument(
        "--ablation",
        action="store_true",
        help="repeat the paper's ablation: train one target model and an explanation module for "
        "each variant, and write a table of their figures",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run that was stopped in the folder --out",
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the seed of all random numbers; the same seed on the same machine gives the same "
        "bundle (default: the recipe's)",
    )
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="number of CPU threads (default: the recipe's)",
    )
    group.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where to compute: cpu, or cuda for a GPU (default: the recipe's, cpu)",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write the curves as events for TensorBoard, to the folder run/tensorboard",
    )
