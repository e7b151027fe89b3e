"""What a run would cost, before anything is spent: data, sizes, memory and time, measured."""

import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemt_dicom.model.manifest import SplitCounts
from nemt_dicom.model.network import ExplainedNetwork

from .data.cases import Case, describe, find_cases
from .data.examples import Examples, load_examples
from .markdown import table
from .prepare import frozen_stages, make_repeatable
from .progress import Progress
from .report.tables import splits_table
from .training.classifier import ClassifierStage
from .training.distributed import Team
from .training.draws import Draws
from .training.explanation_stage import ExplanationStage
from .training.loop import Run, Stage, batches, read_ahead, take_step
from .training.recipe import Places, TrainingConfig
from .training.target_model import build_network

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
            images = torch.from_numpy(examples.take(some)).to(config.device)
            draws = Draws((config.seed, name, 1, 0), some)
            _as_trained(network, make(config).augmented(images, draws))
        steps = epochs * len(batches(np.arange(len(cases)), config.batch))
        bare, piped = rates(make, network, examples, config, progress)
        total += steps / piped
        figures = (f"{bare:.2f}", f"{piped:.2f}", f"{piped / bare:.0%}")
        rows.append([name, str(steps), *figures, f"{steps / piped / 60:.1f}"])
    return "\n\n".join(
        [
            splits_table(
                {k: SplitCounts(**counts) for k, counts in describe(dataset.cases).items()}
            ),
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
    """Moves the explained output until every second image, augmented, has p above a half.

    What agreement costs depends on how many there are, and an untrained model is sure of all or of
    none. Nothing of the network is kept.
    """
    head = network.target_model.get_classifier()
    if isinstance(getattr(head, "bias", None), Tensor):
        odds = network.log_odds(network.logits(images))
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
    """Steps a second: of the bare step, on images in memory that are augmented already; and of the
    loop's own on the same images, which come from the cache, read ahead, and are augmented.

    Both in turn, so that a noisy machine is noisy to both; the inverse of the median times.
    """
    team = Team(rank=0, size=1, device=torch.device(config.device))
    plain = replace(config, augment=False, occlusion=False)
    stage = make(config)
    orders = [batches(stage.order(epoch), config.batch) for epoch in range(STEPS + 1)]
    planned = list(chain.from_iterable(orders))[: STEPS + 1]
    progress.stage(f"timing, {stage.name}", 2 * len(planned))

    def timed(recipe: TrainingConfig, rows: NDArray[np.intp], images: Tensor) -> float:
        stage, run = make(recipe), Run.bare(recipe, network, team)
        stage.begin_epoch()
        started = time.monotonic()
        take_step(stage, stage.module, rows, images, key, 0.5, run)
        spent = time.monotonic() - started
        stage.keep(None)
        progress.step()
        return spent

    times = []
    reader = read_ahead(examples, planned, team)
    for number in range(len(planned)):
        key = (config.seed, stage.name, 1, number)
        started = time.monotonic()
        rows, images = next(reader)
        waited = time.monotonic() - started
        piped = waited + timed(config, rows, images)
        bare = timed(plain, rows, stage.augmented(images, Draws(key, np.arange(len(rows)))))
        times.append((bare, piped))
    bare, piped = (statistics.median(each) for each in zip(*times[1:], strict=True))  # warm
    return 1 / bare, 1 / piped


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
