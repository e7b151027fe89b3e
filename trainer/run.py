"""A training run from labelled folders to a bundle: it reads top to bottom.

labelled images -> target model -> explanation module -> thresholds -> bundle -> evaluation of that
bundle as it is served -> the same bundle with its figures and its model card.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nemt_dicom.errors import TrainingError
from nemt_dicom.files import write_whole
from nemt_dicom.model import bundle as bundles
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork

from .data.examples import Examples
from .evaluation.evaluate import evaluate
from .evaluation.settings import EvaluationSettings
from .inference import soft_masks
from .manifest import Rounding, RunRecord, describe_bundle
from .prepare import (
    Prepared,
    account_of_start,
    frozen_stages,
    make_repeatable,
    prepare,
    require_same,
    require_writable,
    write_account,
)
from .progress import Logged, Progress
from .provenance import code_state, device_name
from .record import draw_panel, recorder
from .report.charts import draw_bars
from .report.model_card import model_card
from .report.publish import publish
from .training.checkpoint import CHECKPOINT, CheckpointFile, Epoch, writing
from .training.classifier import ClassifierStage
from .training.distributed import Team
from .training.explanation_stage import ExplanationStage
from .training.loop import SAVE_EVERY, Run, fit
from .training.places import Places
from .training.recipe import Recipe
from .training.recipe_file import written
from .training.teachers import forget_teachers, train_teachers
from .training.thresholds import FIXED, choose_thresholds

LARGEST_CHANGE = 0.005
"""How far float16 weights may move the answer for a validation image."""

BEGUN = {"config.json", "recipe.toml", "train.log"}
"""Files of the folder `run` that are written before there is anything to go on from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What training leaves.

    prepared: the data, and the network with its trained weights.
    epochs: the figures of every epoch.
    team: the processes that trained.
    """

    prepared: Prepared
    epochs: list[Epoch]
    team: Team


def run(recipe: Recipe, places: Places, progress: Progress) -> Bundle | None:
    """Trains a bundle, writes it to `places.out` and its record to `places.out`/run.

    Returns None in every process but the first. Raises `DataError` and `TrainingError`; nothing is
    trained before all data have been read.
    """
    started, code = time.monotonic(), code_state()
    folder, log = places.out / "run", Logged(progress)
    trained = train(recipe, places, log)
    if not trained.team.first:
        return None
    record = RunRecord(
        minutes=round((time.monotonic() - started) / 60, 1),
        device=device_name(recipe.run.device, recipe.run.threads),
        processes=trained.team.size,
        resumed=places.resume,
        code=code,
        epochs=trained.epochs,
    )
    bundle = finish(trained.prepared, recipe, places, record, log, evaluation=EvaluationSettings())
    (folder / CHECKPOINT).unlink(missing_ok=True)  # the bundle is whole: nothing is left to resume
    forget_teachers(folder)
    log.line(f"bundle with model {bundle.model_digest[:12]} in {bundle.folder}")
    return bundle


def train(
    recipe: Recipe, places: Places, log: Logged, *, save_every: float = SAVE_EVERY
) -> Trained:
    """From data folders to a trained network, from the beginning or with `places.resume`.

    log: told of all that happens. save_every: seconds between two checkpoints within an epoch.
    Raises `DataError` and `TrainingError`.
    """
    folder = places.out / "run"
    checkpoints = CheckpointFile(folder / CHECKPOINT)
    _require_place(places, checkpoints)
    make_repeatable(recipe)
    team = Team.join(recipe.run.device)
    try:
        _require_shared_batch(recipe, team)
        prepared = prepare(recipe, places, team, log)
        _begin(recipe, prepared, places, team, log)
        stages = Run(
            recipe=recipe,
            network=prepared.network,
            team=team,
            checkpoints=checkpoints,
            progress=log,
            record=recorder(prepared, folder, log, tensorboard=places.tensorboard),
            epochs=[],
            goes_on=places.resume and checkpoints.path.is_file(),
            save_every=save_every,
        )
        train_network(prepared, recipe, places, stages)
    finally:
        team.leave()
    return Trained(prepared=prepared, epochs=stages.epochs, team=team)


def train_network(prepared: Prepared, recipe: Recipe, places: Places, stages: Run) -> None:
    """All stages that a run needs.

    The target model's are left out if it exists already or is a feature extractor, the explanation
    module's if a bundle's is kept.
    """
    network, train, validation = prepared.network, prepared.train, prepared.validation
    if recipe.explanation_module.objective != "nem-u" and places.target_model is None:
        frozen, folder = frozen_stages(recipe, places), places.out / "run"
        teachers = train_teachers(train, validation, stages, folder, frozen_stages=frozen)
        stage = ClassifierStage(
            network, train, validation, recipe, frozen_stages=frozen, teachers=teachers
        )
        fit(stage, train, stages)
    if not places.keep_module:
        fit(ExplanationStage(network, train, validation, recipe), train, stages)


def finish(
    prepared: Prepared,
    recipe: Recipe,
    places: Places,
    record: RunRecord,
    progress: Progress,
    *,
    evaluation: EvaluationSettings,
) -> Bundle:
    """From a trained network to its bundle: thresholds, evaluation as it is served, model card."""
    network, validation, out = prepared.network, prepared.validation, places.out
    rounding = round_to_half(network, validation)
    progress.note(
        f"float16 weights change the answer for a validation image by up to {rounding.change:.4f}"
    )
    thresholds = (
        choose_thresholds(network, validation, recipe, progress)
        if network.architecture.explains == "target"
        else FIXED
    )
    draw_panel(out / "run" / "masks.png", network, validation, thresholds)
    network.to("cpu")
    description = describe_bundle(
        prepared.dataset, recipe, places, network, thresholds, record, rounding
    )
    with writing(out):
        draft = bundles.save(
            out, network, description, "# Draft, not yet evaluated\n", half=rounding.half
        )
    results = evaluate(
        draft,
        prepared.dataset,
        places.cache,
        device=recipe.run.device,
        progress=progress,
        settings=evaluation,
    ).results
    draw_bars(out / "run" / "comparison.png", results)
    card = model_card(draft.manifest, network.architecture, results)
    with writing(out):
        return publish(draft, results, card)


def round_to_half(network: ExplainedNetwork, validation: Examples) -> Rounding:
    """Rounds all weights to what a bundle stores of them, most of them float16.

    Everything measured afterwards is measured on the weights that ship. The answer is p, or the
    cosine similarity of an embedding. Weights are not rounded if it changes by more than
    LARGEST_CHANGE.
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
    return Rounding(half=change <= LARGEST_CHANGE, change=change)


def _largest_change(before: Any, after: Any) -> float:
    if before.ndim == 1:
        return float(np.abs(before - after).max())
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float((1 - (before * after).sum(axis=1) / np.maximum(norms, 1e-12)).max())


def _require_shared_batch(recipe: Recipe, team: Team) -> None:
    """Raises `TrainingError` if a batch has too few images for the processes."""
    batch = recipe.run.batch
    if batch < 2 * team.size:
        raise TrainingError(
            f"a batch of {batch} cannot be shared by {team.size} processes, which take an image of "
            f"either kind each: set run.batch to at least {2 * team.size}"
        )


def _require_place(places: Places, checkpoints: CheckpointFile) -> None:
    """Raises `TrainingError` if `places.out` cannot take the run, or has none to go on with."""
    out = places.out
    if os.environ.get("RANK", "0") != "0":
        return  # the first process looks, and ends all; another would meet what it tries
    require_writable(out)
    present = {path for path in out.rglob("*") if path.is_file()} if out.exists() else set()
    kept = present - {out / "run" / name for name in BEGUN}
    if not places.resume:
        if kept:  # a run that was stopped before it had anything to keep is begun anew
            hint = "; go on with --resume" if checkpoints.path.is_file() else ""
            raise TrainingError(f"{out} is not empty; choose a new folder{hint}")
    elif not checkpoints.path.is_file() and (kept or not present):
        raise TrainingError(f"{out} has no checkpoint to resume from; leave --resume out")


def _begin(recipe: Recipe, prepared: Prepared, places: Places, team: Team, log: Logged) -> None:
    """Writes recipe, account and log of a run, after a look whether it is the one to go on with."""
    folder = places.out / "run"
    account = account_of_start(recipe, prepared, places, processes=team.size)
    if places.resume:
        require_same(account, folder / "config.json", log)
    team.wait()
    if not team.first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        write_account(folder / "config.json", account)
        title = "# The recipe of this run. The same again: nemt-train --recipe FILE --data ..."
        text = f"{title}\n\n\n{written(recipe.model_dump())}"
        write_whole(folder / "recipe.toml", text.encode())
    log.write_to(folder / "train.log")
