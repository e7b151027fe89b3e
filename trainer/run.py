"""A training run from labelled folders to a bundle: it reads top to bottom.

labelled images -> target model -> explanation module -> thresholds -> bundle -> evaluation of that
bundle as it is served -> the same bundle with its figures and its model card.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemt_dicom.errors import TrainingError
from nemt_dicom.model import bundle as bundles
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork

from .data.examples import Examples
from .evaluation.evaluate import evaluate
from .evaluation.settings import EvaluationSettings
from .inference import soft_masks
from .manifest import describe_bundle
from .prepare import (
    Prepared,
    begun_with,
    frozen_stages,
    make_repeatable,
    prepare,
    require_same,
    require_writable,
)
from .progress import Progress
from .provenance import code_state, device_name
from .report import training_curves as report
from .report.charts import draw_bars, draw_masks
from .report.model_card import model_card
from .report.schema2 import description_of, to_schema_2
from .training.checkpoint import CheckpointFile, Epoch, writing
from .training.classifier import ClassifierStage
from .training.distributed import Team
from .training.explanation_stage import ExplanationStage
from .training.loop import Run, fit
from .training.recipe import Places, TrainingConfig
from .training.teachers import forget_teachers, train_teachers
from .training.thresholds import FIXED, Thresholds, choose_thresholds

LARGEST_CHANGE = 0.005
"""How far float16 weights may move the answer for a validation image."""

SHOWN = 12
"""Validation images a label in the panel of masks."""


def run(
    config: TrainingConfig,
    places: Places,
    progress: Progress,
    *,
    evaluation: EvaluationSettings | None = None,
) -> Bundle | None:
    """Trains a bundle, writes it to `places.out` and its record to `places.out`/run.

    evaluation: how the bundle is measured at the end; None: as a CPU can afford.

    Returns None in every process but the first. Raises `DataError` and `TrainingError`; nothing is
    trained before all data have been read.
    """
    started, code = time.monotonic(), code_state()
    folder = places.out / "run"
    checkpoints = CheckpointFile(folder / "checkpoint.pt")
    _require_place(places, checkpoints)
    make_repeatable(config)
    team = Team.join(config.device)
    try:
        if config.batch < 2 * team.size:
            raise TrainingError(
                f"a batch of {config.batch} cannot be shared by {team.size} processes, which take "
                f"an image of either kind each: at least {2 * team.size} by --batch"
            )
        prepared = prepare(config, places, team, progress)
        begun = config.to_manifest() | {
            "begun_with": begun_with(prepared, places, processes=team.size)
        }
        if places.resume:
            require_same(begun, folder / "config.json", progress)
        team.wait()
        if team.first:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(begun, indent=2)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        stages = Run(
            config=config,
            network=prepared.network,
            team=team,
            checkpoints=checkpoints,
            progress=progress,
            record=_recorder(prepared, folder, tensorboard=places.tensorboard),
            epochs=[],
            goes_on=places.resume and checkpoints.path.is_file(),
        )
        train_network(prepared, config, places, stages)
    finally:
        team.leave()
    if not team.first:
        return None
    facts = {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "device": device_name(config.device, config.threads),
        "processes": team.size,
        "resumed": places.resume,
        "code": code,
        "epochs": [[e.part, e.number, e.figures] for e in stages.epochs],
    }
    measuring = evaluation or EvaluationSettings()
    bundle = finish(prepared, config, places, facts, progress, evaluation=measuring)
    checkpoints.path.unlink(missing_ok=True)  # the bundle is whole: nothing is left to resume
    forget_teachers(folder)
    return bundle


def train_network(prepared: Prepared, config: TrainingConfig, places: Places, stages: Run) -> None:
    """All stages; the target model's only where it is not given and not a feature extractor.

    Neither where a bundle's explanation module is kept.
    """
    network, train, validation = prepared.network, prepared.train, prepared.validation
    if config.objective != "nem-u" and places.target_model is None:
        frozen, folder = frozen_stages(config, places), places.out / "run"
        teachers = train_teachers(train, validation, stages, folder, frozen_stages=frozen)
        stage = ClassifierStage(
            network, train, validation, config, frozen_stages=frozen, teachers=teachers
        )
        fit(stage, train, stages)
    if not places.keep_module:
        fit(ExplanationStage(network, train, validation, config), train, stages)


def finish(
    prepared: Prepared,
    config: TrainingConfig,
    places: Places,
    facts: dict[str, Any],
    progress: Progress,
    *,
    evaluation: EvaluationSettings,
) -> Bundle:
    """From a trained network to its bundle: thresholds, evaluation as it is served, model card.

    facts: what else the manifest shall say of the training.
    """
    network, validation, out = prepared.network, prepared.validation, places.out
    half, change = round_to_half(network, validation)
    progress.note(f"float16 weights change the answer for a validation image by up to {change:.4f}")
    thresholds = (
        choose_thresholds(network, validation, config, progress)
        if network.architecture.explains == "target"
        else FIXED
    )
    _draw_panel(out / "run" / "masks.png", network, validation, thresholds)
    network.to("cpu")
    description = describe_bundle(prepared.dataset, config, places, network, thresholds)
    description["training"] |= facts | {
        "weights": "float16" if half else "float32",
        "half_precision_changes_answer": round(change, 6),
    }
    with writing(out):
        draft = bundles.save(out, network, description, "# Draft, not yet evaluated\n", half=half)
    results = evaluate(
        draft,
        prepared.dataset,
        places.cache,
        device=config.device,
        progress=progress,
        settings=evaluation,
    ).results
    description["metrics"] = to_schema_2(results)
    draw_bars(out / "run" / "comparison.png", results)
    card = model_card(description_of(description), network.architecture, results)
    with writing(out):
        return bundles.save(out, network, description, card, half=half)


def round_to_half(network: ExplainedNetwork, validation: Examples) -> tuple[bool, float]:
    """Rounds all weights to what a bundle stores of them, most of them float16.

    Everything measured afterwards is measured on the weights that ship. Returns whether they were
    rounded, and by how much the answer for a validation image changes at most: p, or the cosine
    similarity of an embedding. They are not where that is more than LARGEST_CHANGE.
    """
    images = validation.images
    exact = {k: v.detach().clone() for k, v in network.state_dict().items()}
    before, _ = soft_masks(network, images)
    rounded = {
        k: bundles.as_stored(v).to(v) if v.is_floating_point() else v for k, v in exact.items()
    }
    finite = all(bool(torch.isfinite(v).all()) for v in rounded.values())
    change = float("inf")
    if finite:
        network.load_state_dict(rounded)
        after, _ = soft_masks(network, images)
        change = _largest_change(before, after)
    if not change <= LARGEST_CHANGE:
        network.load_state_dict(exact)
    return change <= LARGEST_CHANGE, change


def _largest_change(before: Any, after: Any) -> float:
    if before.ndim == 1:
        return float(np.abs(before - after).max())
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float((1 - (before * after).sum(axis=1) / np.maximum(norms, 1e-12)).max())


def _require_place(places: Places, checkpoints: CheckpointFile) -> None:
    out = places.out
    if os.environ.get("RANK", "0") != "0":
        return  # the first process looks, and ends all; another would meet what it tries
    require_writable(out)
    held = {path for path in out.rglob("*") if path.is_file()} if out.exists() else set()
    begun = out / "run" / "config.json"
    if not places.resume:
        if held - {begun}:  # a run that was stopped before it had anything to keep is begun anew
            hint = "; go on with --resume" if checkpoints.path.is_file() else ""
            raise TrainingError(f"{out} is not empty; choose a new folder{hint}")
    elif not checkpoints.path.is_file() and held != {begun}:
        raise TrainingError(f"{out} has no checkpoint to resume from; leave --resume out")


def _recorder(
    prepared: Prepared, folder: Path, *, tensorboard: bool
) -> Callable[[list[Epoch]], None]:
    """What is written after each epoch: figures, curves, a panel of masks, TensorBoard's events."""
    writer = report.tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def record(epochs: list[Epoch]) -> None:
        newest = epochs[-1]
        with writing(folder):
            report.write_metrics(folder / "metrics.csv", epochs)
            report.draw_curves(folder / "curves.png", epochs)
            if newest.part == ExplanationStage.name:
                path = folder / f"masks-{newest.number:03d}.png"
                _draw_panel(path, prepared.network, prepared.validation, FIXED)
        if writer is not None:
            for name, value in newest.figures.items():
                writer.add_scalar(f"{newest.part}/{name}", value, newest.number)
            writer.flush()

    return record


def _draw_panel(
    path: Path, network: ExplainedNetwork, validation: Examples, thresholds: Thresholds
) -> None:
    rows = np.concatenate([np.flatnonzero(validation.labels == label)[:SHOWN] for label in (1, 0)])
    images = validation.take(rows)
    answer, masks = soft_masks(network, images)
    titles = [
        f"{'positive' if validation.labels[row] > 0.5 else 'negative'}"
        + ("" if answer.ndim > 1 else f", p = {p:.2f}")
        for row, p in zip(rows, answer[:, 0] if answer.ndim > 1 else answer, strict=True)
    ]
    draw_masks(path, images, masks, titles, thresholds.mask_threshold)
