"""What a run would cost, before anything is spent: data, sizes, memory and time, measured."""

import copy
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemt_dicom.model.manifest import SplitCounts
from nemt_dicom.model.network import ExplainedNetwork

from .data.cases import Case, describe
from .data.examples import Examples, load_examples
from .markdown import bullets, code, table
from .prepare import frozen_stages, make_repeatable, read_tables
from .progress import Progress
from .report.tables import splits_table
from .training.classifier import ClassifierStage
from .training.distributed import Team
from .training.draws import Draws
from .training.explanation_stage import ExplanationStage
from .training.loop import Run, batches, read_ahead, take_step
from .training.places import Places
from .training.recipe import Recipe
from .training.stage import Stage
from .training.target_model import build_network


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A stage of the run. name: as the report calls it. epochs: at most, of all its models."""

    name: str
    stage: Stage
    epochs: int


def dry_run(recipe: Recipe, places: Places, progress: Progress) -> str:
    """A Markdown report. Reads the tables and two batches of training images; trains nothing."""
    make_repeatable(recipe)
    dataset = read_tables(recipe, places)
    network = build_network(recipe, places, dataset).to(recipe.run.device)
    cases = [case for case in dataset.cases if case.split == "train"]
    sample = _sample(cases, 2 * recipe.run.batch)
    progress.stage("reading a sample", len(sample))
    started = time.monotonic()
    examples = load_examples(
        sample, recipe.preprocessing, cache=places.cache, done=progress.step, skip_bad=True
    )
    reading = (time.monotonic() - started) / len(sample) * len(dataset.cases)
    steps = len(batches(np.arange(len(cases)), recipe.run.batch))
    rows, total = [], reading
    for planned in _stages(recipe, places, network, examples):
        seconds = step_seconds(planned.stage, network, examples, recipe, progress)
        spent = planned.epochs * steps * seconds
        total += spent
        count = str(planned.epochs * steps)
        rows.append([planned.name, count, f"{seconds:.2f}", f"{spent / 60:.1f}"])
    heads = ["stage", "steps", "seconds a step", "minutes"]
    return "\n\n".join(
        [
            splits_table(
                {k: SplitCounts(**counts) for k, counts in describe(dataset.cases).items()}
            ),
            _sizes(network, len(dataset.cases), recipe, examples.store.shape[1]),
            table(heads, rows) if rows else "Nothing is trained.",
            f"Reading all images once: at most {reading / 60:.1f} minutes. Training, at most "
            f"{total / 60:.1f} minutes in all, without validation and evaluation.",
            *([bullets(dataset.notes)] if dataset.notes else []),
        ]
    )


def _stages(
    recipe: Recipe, places: Places, network: ExplainedNetwork, examples: Examples
) -> Iterator[Planned]:
    """The stages that the run would train, as `run.train_network` does, each when it is asked for.

    Each leaves the network as the next one expects it.
    """
    settings = recipe.target_model
    if recipe.explanation_module.objective != "nem-u" and places.target_model is None:
        frozen = frozen_stages(recipe, places)
        teachers = [copy.deepcopy(network)] * settings.teachers
        if teachers:
            taught = ClassifierStage(network, examples, examples, recipe, frozen_stages=frozen)
            epochs = settings.epochs * settings.teachers
            yield Planned(name="teachers", stage=taught, epochs=epochs)
        stage = ClassifierStage(
            network, examples, examples, recipe, frozen_stages=frozen, teachers=teachers
        )
        yield Planned(name="classifier", stage=stage, epochs=settings.epochs)
    if not places.keep_module:
        module = ExplanationStage(network, examples, examples, recipe)
        _as_trained(network, module, examples, recipe)
        epochs = recipe.explanation_module.epochs
        yield Planned(name="explanation module", stage=module, epochs=epochs)


@torch.no_grad()
def _as_trained(
    network: ExplainedNetwork, stage: Stage, examples: Examples, recipe: Recipe
) -> None:
    """Moves the explained output until every second image, augmented, has p above a half.

    The agreement with squares costs more, the more such images there are, and an untrained model is
    sure of all or of none. Nothing of the network is kept.
    """
    module = recipe.explanation_module
    head = network.target_model.get_classifier()
    asked = module.agreement > 0 and module.objective in {"nemt", "nemt-predicted"}
    if asked and isinstance(getattr(head, "bias", None), Tensor):
        some = np.arange(min(recipe.run.batch, len(examples)))
        images = torch.from_numpy(examples.take(some)).to(recipe.run.device)
        draws = Draws((recipe.run.seed, stage.name, 1, 0), some)
        odds = network.log_odds(network.logits(stage.augmented(images, draws)))
        head.bias[network.target_index] -= odds.median() - 1e-3


def _sample(cases: Sequence[Case], count: int) -> list[Case]:
    """Some of both labels, for tables are often sorted."""
    positive = [case for case in cases if case.label]
    negative = [case for case in cases if not case.label]
    half = positive[: max(count // 2, count - len(negative))]
    return half + negative[: count - len(half)]


def step_seconds(
    stage: Stage,
    network: ExplainedNetwork,
    examples: Examples,
    recipe: Recipe,
    progress: Progress,
) -> float:
    """Seconds of one real step of the stage, input pipeline included, after one to warm up."""
    team = Team(rank=0, size=1, device=torch.device(recipe.run.device))
    bare = Run.bare(recipe, network, team)
    order = [batches(stage.order(epoch), recipe.run.batch)[0] for epoch in (1, 2)]
    progress.stage(f"timing, {stage.name}", len(order))
    stage.begin_epoch()
    spent = 0.0
    for number, planned in enumerate(order):
        started = time.monotonic()
        for rows, images in read_ahead(examples, [planned], team):
            key = (recipe.run.seed, stage.name, 1, number)
            take_step(stage, stage.module, rows, images, key, 0.5, bare)  # waits for its loss
        spent = time.monotonic() - started
        progress.step()
    stage.keep(None)
    return spent


def _sizes(network: ExplainedNetwork, count: int, recipe: Recipe, channels: int) -> str:
    target, module = (
        sum(p.numel() for p in part.parameters())
        for part in (network.target_model, network.explanation_module)
    )
    computing = recipe.run
    cached = count * channels * recipe.input.size**2 * 4
    if computing.device == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
    else:  # in KiB on Linux, in bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        memory = f"{peak / 2**30:.1f} GiB of memory"
    return (
        f"Target model {code(recipe.target_model.backbone)}: {target:,} parameters. Explanation "
        f"module {code(recipe.explanation_module.decoder)}: {module:,}. A step of "
        f"{computing.batch} images in {'bfloat16' if computing.bfloat16 is True else 'float32'} "
        f"took {memory} at most. "
        f"The cache of all images takes {cached / 2**30:.2f} GiB of disk."
    )
