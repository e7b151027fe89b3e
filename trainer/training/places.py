"""Where a run reads and writes, and what it starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemt_dicom.model.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a run reads and writes, and what it starts from. A recipe says the rest.

    folders: data folders.
    out: new folder of the bundle.
    cache: folder of preprocessed images.
    target_model: file with the weights of a trained target model; None: one is trained.
    bundle: the bundle whose target model that is; None: the weights are a plain file.
    keep_module: keep the bundle's explanation module, too, so that nothing is trained.
    output: index or name of the explained output of a target model from a file.
    output_names: names of its outputs, in order.
    activation: of its outputs; "softmax" if they exclude each other.
    initial_weights: file of weights that training of the target model starts from.
    resume: go on with the run that was stopped in `out`.
    skip_bad: leave out images that are missing or cannot be read.
    tensorboard: write events for TensorBoard.
    """

    folders: tuple[Path, ...]
    out: Path
    cache: Path
    target_model: Path | None = None
    bundle: Bundle | None = None
    keep_module: bool = False
    output: str | None = None
    output_names: tuple[str, ...] = ()
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    initial_weights: Path | None = None
    resume: bool = False
    skip_bad: bool = False
    tensorboard: bool = False
