"""The options of nemt-train, with their help."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import fill
from typing import Any

from .data.examples import default_cache
from .training.recipe import NEM_U, PRESETS, TrainingConfig

DESCRIPTION = """\
Trains a target model for one label and an explanation module on its features, and writes a bundle
that `nemt-dicom serve --bundle DIR` and `nemt-dicom explain --bundle DIR` use. Research only.

Data folders are recognised by the files they hold; give --data once for each:
  RSNA 2018         stage_2_train_images/*.dcm, stage_2_train_labels.csv; patients and splits from
                    splits.csv (patientId, nih_patient_id, split) or from the set's mapping file
  NIH ChestX-ray14  images/*.png, Data_Entry_2017_v2020.csv; any of its 14 labels is a target
  HAM10000          images/*.jpg, masks/, HAM10000_metadata.csv; any of its 7 classes is a target
  plain CSV         labels.csv (path, label, patient_id; split and kind where wanted)
Splits are by patient: the table's own column `split`, else a stable hash. 15 % of the training
patients are validation, which every choice is made on; the test split is used for the final figures
only. Boxes and lesion masks never take part in training."""
EPILOG = """\
examples:
  cd rsna && nemt-train --target pneumonia
  nemt-train --target pneumonia --data nih-mini --data rsna-mini
  nemt-train --target melanoma --data ham10000-mini --out runs/melanoma
  nemt-train --target pneumonia --data rsna --preset paper --initial-weights resnet50.safetensors \\
             --out runs/paper
  nemt-train --target effusion --data nih --target-model mine.safetensors --backbone resnet50 \\
             --output 4 --out runs/mine
  nemt-train --target pneumonia --data rsna-mini --objective nem-u --out runs/representation
  nemt-train --target pneumonia --data rsna-mini --ablation --mask-epochs 3 --out runs/ablation
  torchrun --nproc-per-node 4 -m trainer.cli --device cuda --target pneumonia --data rsna --out DIR

--out gets the bundle's five files, and a folder `run`: config.json, metrics.csv, curves.png, a
panel of masks each epoch, comparison.png. A run that was stopped goes on with the same command
and --resume, to the same bits.
exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """The command line. What is not given comes from the preset, so no option has a default."""
    parser = argparse.ArgumentParser(
        prog="nemt-train",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _data_options(parser)
    _target_model_options(parser)
    _mask_options(parser)
    _run_options(parser)
    return parser


def _option(group: Any, flag: str, name: str, text: str, choices: Sequence[str] = ()) -> None:
    """An option for a field of the recipe; the help names its default."""
    default = next(field.default for field in fields(TrainingConfig) if field.name == name)
    kind = float if default is None else type(default)
    shape: dict[str, Any] = (
        {"choices": choices}
        if choices
        else {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "NAME")}
    )
    group.add_argument(flag, dest=name, help=f"{text} (default: {default})", **shape)


def _switch(group: Any, flag: str, name: str, value: bool, text: str) -> None:
    group.add_argument(flag, dest=name, action="store_true" if value else "store_false", help=text)


def _data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--target", required=True, help="label to explain, such as pneumonia")
    data.add_argument(
        "--data",
        dest="folders",
        action="append",
        type=Path,
        metavar="DIR",
        help="a data folder, or a labels.csv (default: the current folder)",
    )
    data.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="new folder for the bundle (default: runs/TARGET)",
    )
    data.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help=f"preprocessed images, for every run (default: {default_cache()})",
    )
    _switch(data, "--skip-bad", "skip_bad", True, "leave missing and unreadable images out")


def _target_model_options(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target model")
    target.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="default",
        help="default: what measured best; paper: ResNet-50 and the paper's settings",
    )
    _option(target, "--backbone", "backbone", "timm model")
    _switch(
        target, "--random-init", "pretrained", False, "start from random weights, not ImageNet's"
    )
    target.add_argument(
        "--initial-weights",
        type=Path,
        metavar="FILE",
        help="start from these weights of the backbone; the head starts anew",
    )
    target.add_argument(
        "--target-model",
        type=Path,
        metavar="FILE|BUNDLE",
        help="explain this trained model: its state dict as safetensors or torch checkpoint, or a "
        "bundle's folder, whose target model gets another explanation module",
    )
    _switch(
        target,
        "--keep-module",
        "keep_module",
        True,
        "keep the explanation module of that bundle, too: only what is served (--gamma, "
        "--full-from), the thresholds and the figures are new",
    )
    target.add_argument("--output", metavar="N|NAME", help="its output to explain (the target)")
    target.add_argument("--output-names", metavar="A,B,...", help="names of its outputs, in order")
    target.add_argument(
        "--activation",
        choices=("sigmoid", "softmax"),
        help="of its outputs; softmax where they exclude each other (default: sigmoid)",
    )
    _option(target, "--size", "size", "side of the model's input in pixels")
    _option(target, "--classifier-epochs", "classifier_epochs", "epochs at most")
    _option(
        target, "--classifier-optimiser", "classifier_optimiser", "optimiser", ("adamw", "prodigy")
    )
    _option(target, "--classifier-lr", "classifier_lr", "largest step size")
    _option(target, "--frozen-stages", "frozen_stages", "keep their weights, unless random")
    _option(target, "--label-smoothing", "label_smoothing", "0 to below 0.5")
    target.add_argument(
        "--auxiliary",
        metavar="A,B,...",
        help="further labels it learns where the data know them (default: all)",
    )
    _option(target, "--mined-weight", "mined_weight", "of NIH's positives beside RSNA's labels")
    _option(
        target,
        "--teachers",
        "teachers",
        "target models trained first, whose mean answer the one that is kept learns",
    )
    _switch(target, "--no-augment", "augment", False, "images are not turned, moved or scaled")
    _switch(target, "--no-mirror", "mirror", False, "left and right are not exchanged")
    _option(target, "--noise", "noise", "largest standard deviation of the noise that is added")
    _switch(target, "--no-occlusion", "occlusion", False, "no random occlusions")


def _mask_options(parser: argparse.ArgumentParser) -> None:
    own = ", ".join(f"{name} {value}" for name, value in NEM_U["default"].items())
    mask = parser.add_argument_group(
        "explanation module", fill(f"nem-u has defaults of its own: {own}", 76)
    )
    _option(
        mask,
        "--objective",
        "objective",
        "nemt: the target; nemt-predicted: the largest output; nem-u: the representation; "
        "literal: equation (2) as printed",
        ("nemt", "nemt-predicted", "nem-u", "literal"),
    )
    _option(mask, "--mask-epochs", "mask_epochs", "epochs at most")
    _switch(
        mask,
        "--unbalanced",
        "mask_balanced",
        False,
        "every example once an epoch, not images with p above a half for half of each batch",
    )
    _option(
        mask,
        "--keep",
        "keep",
        "the epoch whose masks are most faithful on validation, the last one, or the one with the "
        "least validation loss",
        ("faithful", "last", "loss"),
    )
    _option(mask, "--area-weight", "area_weight", "λ₁, the price of a mask's area")
    _option(mask, "--area-warmup", "area_warmup", "share of the steps over which λ₁ rises from 0")
    _option(mask, "--neighbourhood", "neighbourhood", "side of the smoothing window; 1: none")
    _option(mask, "--decoder", "decoder", "unet is the paper's", ("light", "unet"))
    _option(mask, "--decoder-width", "decoder_width", "channels of the light decoder")
    _option(mask, "--decoder-norm", "decoder_norm", "normalisation", ("batch", "group"))
    _option(
        mask,
        "--fill",
        "fill",
        "what takes the place of removed pixels",
        ("black", "mean", "blur", "mixed"),
    )
    _option(
        mask,
        "--response",
        "response",
        "what has to fall; the paper: logit, its code: probability",
        ("evidence", "probability", "logit"),
    )
    _switch(mask, "--unscaled", "scaled", False, "do not divide the response by its mean")
    _switch(
        mask,
        "--no-follow",
        "follows",
        False,
        "the mask is neither told the log odds nor weighed by the local probability",
    )
    _option(
        mask,
        "--full-from",
        "full_from",
        "log odds whose shape a served mask has, and from which on it is at its full height",
    )
    _option(mask, "--gamma", "gamma", "power of the mask that is served; 1: as it is trained")
    _option(mask, "--exponent", "exponent", "of the fall; the paper: 2")
    _option(mask, "--preservation", "preservation", "weight of: the evidence alone keeps p")
    _option(
        mask, "--agreement", "agreement", "weight of: the mask follows what single squares matter"
    )
    _option(mask, "--binary-weight", "binary_weight", "λ₂ of nem-u: masks near 0 or 1")
    _switch(
        mask, "--any-change", "fall_only", False, "reward a rise of p like a fall, as the paper"
    )
    _option(
        mask,
        "--sensitivity",
        "sensitivity",
        "on validation, for the decision threshold; without it Youden's J",
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    _switch(group, "--dry-run", "dry_run", True, "show data, size, memory and time; train nothing")
    _switch(
        group, "--ablation", "ablation", True, "the paper's ablation on one target model: a table"
    )
    _switch(group, "--resume", "resume", True, "go on with a run that was stopped")
    _option(group, "--batch", "batch", "images a step, of all processes together")
    _option(group, "--accumulate", "accumulate", "parts a batch is computed in, to save memory")
    _option(
        group, "--seed", "seed", "the same seed, threads, processor and libraries: the same bundle"
    )
    _option(group, "--threads", "threads", "CPU threads")
    _option(group, "--device", "device", "processor", ("cpu", "cuda"))
    group.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        help="train in mixed precision (default: where the processor has instructions for it)",
    )
    _switch(group, "--compile", "compile", True, "torch.compile: slow start, faster steps on a GPU")
    _switch(group, "--tensorboard", "tensorboard", True, "write events for TensorBoard")
