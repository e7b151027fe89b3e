"""Where a bundle comes from: its manifest's account of data, recipe, code and machine."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from nemt_dicom import __version__
from nemt_dicom.model.evaluation import CodeState
from nemt_dicom.model.manifest import (
    Description,
    Parameters,
    Parent,
    SplitCounts,
    Training,
    TrainingData,
)
from nemt_dicom.model.manifest import Epoch as EpochRecord
from nemt_dicom.model.network import ExplainedNetwork

from .data.cases import Dataset, describe, fingerprint
from .provenance import file_digest, libraries, training_of
from .seen_patients import record_of_seen
from .training.checkpoint import Epoch
from .training.classifier import CLASSIFIER
from .training.places import Places
from .training.recipe import Recipe
from .training.thresholds import Thresholds


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What only the run knows of a training.

    minutes: since the run began or was resumed.
    device: the processor, as people name it.
    processes: how many trained together.
    """

    minutes: float
    device: str
    processes: int
    resumed: bool
    code: CodeState
    epochs: Sequence[Epoch]


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How the weights of a bundle are stored.

    half: whether most of them are float16.
    change: the largest change of the answer for a validation image by float16; may be infinite.
    """

    half: bool
    change: float


def describe_bundle(
    dataset: Dataset,
    recipe: Recipe,
    places: Places,
    network: ExplainedNetwork,
    thresholds: Thresholds,
    run: RunRecord,
    rounding: Rounding,
) -> Description:
    """What a run says of its bundle; no folder of this machine stands in it."""
    architecture = network.architecture
    kinds = {case.kind for case in dataset.cases if case.split == "train"}
    return Description(
        name=architecture.target,
        version=__version__,
        target=architecture.target,
        source_kinds=tuple(sorted(kinds)),
        decision_threshold=thresholds.decision_threshold,
        mask_threshold=thresholds.mask_threshold,
        evidence_margin=thresholds.evidence_margin,
        fill=recipe.served_fill,
        preprocessing=recipe.preprocessing.to_manifest(),
        training=Training(
            recipe=recipe.to_manifest(),
            target_model_file=file_digest(places.target_model),
            initial_weights_file=file_digest(places.initial_weights),
            parent=trained_by(places),
            thresholds=thresholds.record,
            libraries=libraries(),
            parameters=Parameters(
                target_model=_count(network.target_model),
                explanation_module=_count(network.explanation_module),
            ),
            minutes=run.minutes,
            device=run.device,
            processes=run.processes,
            resumed=run.resumed,
            code=run.code,
            epochs=records(run.epochs),
            weights="float16" if rounding.half else "float32",
            half_precision_changes_answer=(
                round(rounding.change, 6) if math.isfinite(rounding.change) else None
            ),
        ),
        data=TrainingData(
            sources=tuple(sorted({case.source for case in dataset.cases})),
            label=dataset.target,
            splits={k: SplitCounts(**v) for k, v in describe(dataset.cases).items()},
            fingerprint=fingerprint(dataset.cases),
            notes=tuple(dataset.notes),
            seen=record_of_seen(dataset.cases, places),
        ),
    )


def records(epochs: Iterable[Epoch]) -> tuple[EpochRecord, ...]:
    """A run's epochs as a bundle keeps them: a figure that is not finite is left out."""
    return tuple(
        EpochRecord(
            part=epoch.part,
            number=epoch.number,
            figures={k: v for k, v in epoch.figures.items() if math.isfinite(v)},
        )
        for epoch in epochs
    )


def trained_by(places: Places) -> Parent | None:
    """The bundle that trained what a run takes from a bundle; None if it takes nothing.

    That is the bundle's parent if the bundle trained no part of what is taken. A bundle names one
    parent. Of the bundles before it remain the files that the first one began with, and whether
    all were trained on the same data.
    """
    bundle = places.bundle
    if not bundle:
        return None
    training, data = training_of(bundle)
    before = training.parent
    if before and not places.keep_module:
        return before.model_copy(
            update={"module_kept": False, "epochs": _of_the_target_model(before.epochs)}
        )
    if before and before.module_kept:
        return before
    start = before or training
    return Parent(
        name=bundle.manifest.name,
        version=bundle.manifest.version,
        digest=bundle.model_digest,
        data=data.fingerprint if before is None or before.data == data.fingerprint else None,
        module_kept=places.keep_module,
        code=training.code,
        device=training.device,
        target_model_file=start.target_model_file,
        initial_weights_file=start.initial_weights_file,
        epochs=training.epochs if places.keep_module else _of_the_target_model(training.epochs),
    )


def _of_the_target_model(epochs: tuple[EpochRecord, ...]) -> tuple[EpochRecord, ...]:
    return tuple(epoch for epoch in epochs if epoch.part == CLASSIFIER)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
