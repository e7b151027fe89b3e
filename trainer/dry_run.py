"""What a run would cost, before anything is spent: data, sizes, memory and time, measured."""

import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nemt_dicom.network import ExplainedNetwork

from .cache import Examples, load_examples
from .classifier import ClassifierStage
from .config import Places, TrainingConfig
from .datasets import Case, describe, find_cases
from .distributed import Team
from .explanation import ExplanationStage
from .progress import Progress
from .result_tables import splits_table, table
from .run import frozen_stages, make_repeatable
from .target_model import build_network
from .train import Run, Stage, batches, read_ahead, take_step

STEPS = 6
"""Steps timed of each kind."""

Maker = Callable[[TrainingConfig], Stage]
"""Makes a stage for a recipe."""


def dry_run(config: TrainingConfig, places: Places, progress: Progress) -> str:
    """A Markdown report. Reads the tables and a few batches of training images; trains nothing."""
    make_repeatable(config)
    dataset = find_cases(
        places.folders,
        target=config.target,
        validation_share=config.validation_share,
        auxiliary=config.auxiliary,
        skip_bad=places.skip_bad,
    )
    network = build_network(config, places, dataset).to(config.device)
    cases = [case for case in dataset.cases if case.split == "train"]
    sample = _sample(cases, config.batch * STEPS)
    progress.stage("reading a sample", len(sample))
    started = time.monotonic()
    examples = load_examples(
        sample, config.preprocessing, cache=places.cache, done=progress.step, skip_bad=True
    )
    reading = (time.monotonic() - started) / len(sample) * len(dataset.cases)
    makers: dict[str, tuple[Maker, int]] = {}
    if config.objective != "nem-u" and places.target_model is None:
        frozen = frozen_stages(config, places)
        teachers = [copy.deepcopy(network)] * config.teachers
        data = network, examples, examples
        if teachers:
            makers["teachers"] = (
                lambda recipe: ClassifierStage(*data, recipe, frozen_stages=frozen),
                config.classifier_epochs * config.teachers,
            )
        makers["classifier"] = (
            lambda recipe: ClassifierStage(*data, recipe, frozen_stages=frozen, teachers=teachers),
            config.classifier_epochs,
        )
    if not places.keep_module:
        makers["explanation module"] = (
            lambda recipe: ExplanationStage(network, examples, examples, recipe),
            config.mask_epochs,
        )
    asks = config.agreement > 0 and config.objective in {"nemt", "nemt-predicted"}
    rows, total = [], reading
    for name, (make, epochs) in makers.items():
        if name == "explanation module" and asks:
            some = np.arange(min(config.batch, len(examples)))
            _as_trained(network, torch.from_numpy(examples.take(some)))
        steps = epochs * len(batches(np.arange(len(cases)), config.batch))
        bare, piped = rates(make, network, examples, config, progress)
        total += steps / piped
        figures = (f"{bare:.2f}", f"{piped:.2f}", f"{piped / bare:.0%}")
        rows.append([name, str(steps), *figures, f"{steps / piped / 60:.1f}"])
    return "\n\n".join(
        [
            splits_table(describe(dataset.cases)),
            _sizes(network, len(dataset.cases), config, examples.store.shape[1]),
            _times(rows) if rows else "Nothing is trained.",
            f"Reading all images once: at most {reading / 60:.1f} minutes. Training, at most "
            f"{total / 60:.1f} minutes in all, without validation and evaluation.",
            *dataset.notes,
        ]
    )


def _times(rows: list[list[str]]) -> str:
    heads = "stage", "steps", "bare steps/s", "steps/s with the input pipeline", "share", "minutes"
    return table(list(heads), rows)


@torch.no_grad()
def _as_trained(network: ExplainedNetwork, images: Tensor) -> None:
    """Moves the explained output until every second image has p above a half.

    What agreement costs depends on how many there are, and an untrained model is sure of all or of
    none. Nothing of the network is kept.
    """
    head = network.target_model.get_classifier()
    if isinstance(getattr(head, "bias", None), Tensor):
        odds = network.log_odds(network.logits(images.to(head.bias.device)))
        head.bias[network.target_index] -= odds.median() - 1e-3


def _sample(cases: Sequence[Case], count: int) -> list[Case]:
    """Some of both labels, for tables are often sorted."""
    positive = [case for case in cases if case.label]
    negative = [case for case in cases if not case.label]
    half = positive[: max(count // 2, count - len(negative))]
    return half + negative[: count - len(half)]


def rates(
    make: Maker,
    network: ExplainedNetwork,
    examples: Examples,
    config: TrainingConfig,
    progress: Progress,
) -> tuple[float, float]:
    """Steps a second: of the bare step, on tensors in memory and without augmentation; and of the
    loop's own, with images from the cache, read ahead, and augmentation.

    Both in turn, so that a noisy machine is noisy to both; the inverse of the median times.
    """
    team = Team(rank=0, size=1, device=torch.device(config.device))
    plain = replace(config, augment=False, occlusion=False)
    stage = make(plain)
    name, first = stage.name, batches(stage.order(1), config.batch)[0]
    held = torch.from_numpy(examples.take(first)).to(team.device)
    planned = [
        rows for epoch in range(STEPS + 1) for rows in batches(stage.order(epoch), config.batch)
    ][: STEPS + 1]
    times: dict[bool, list[float]] = {False: [], True: []}
    progress.stage(f"timing, {name}", 2 * len(planned))
    reader = read_ahead(examples, planned, team)
    for number in range(len(planned)):
        for piped, recipe in ((False, plain), (True, config)):
            run = Run.bare(recipe, network, team)
            stage = make(recipe)
            stage.begin_epoch()
            started = time.monotonic()
            rows, images = next(reader) if piped else (first, held)
            take_step(stage, stage.module, rows, images, (config.seed, name, 1, 0), 0.5, run)
            if number:  # the first is warm-up
                times[piped].append(time.monotonic() - started)
            progress.step()
            stage.keep(None)
    return 1 / statistics.median(times[False]), 1 / statistics.median(times[True])


def _sizes(network: ExplainedNetwork, count: int, config: TrainingConfig, channels: int) -> str:
    target, module = (
        sum(p.numel() for p in part.parameters())
        for part in (network.target_model, network.explanation_module)
    )
    cached = count * channels * config.size**2 * 4
    if config.device == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
    else:  # in KiB on Linux, in bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        memory = f"{peak / 2**30:.1f} GiB of memory"
    return (
        f"Target model `{config.backbone}`: {target:,} parameters. Explanation module "
        f"`{config.decoder}`: {module:,}. A step of {config.batch} images in "
        f"{'bfloat16' if config.bfloat16 else 'float32'} took {memory} at most. "
        f"The cache of all images takes {cached / 2**30:.2f} GiB of disk."
    )
