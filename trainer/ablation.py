"""The paper's ablation (its appendix A.3) on one target model: one command, a table and a plot.

Each variant trains the explanation module anew with the paper's objective (deletion form, response
probability, exponent 2, black fill, no warm-up) and one thing changed, and is measured on the test
images that have ground truth.
"""

import json
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.errors import DataError, TrainingError
from nemt_dicom.model.evaluation import Scores

from .arrays import Regions
from .data.examples import Examples
from .data.ground_truth import ground_truth
from .data.layouts import file_name
from .evaluation.maps import Attributed
from .evaluation.scores import Compared, methods_table, scores
from .evaluation.settings import NEMT
from .files import write_whole
from .inference import soft_masks
from .markdown import show
from .prepare import (
    Prepared,
    begun_with,
    frozen_stages,
    load_split,
    make_repeatable,
    prepare,
    require_same,
    require_writable,
)
from .progress import Progress
from .report import training_curves as report
from .statistics import Patients
from .training.checkpoint import CheckpointFile, writing
from .training.classifier import ClassifierStage
from .training.distributed import Team
from .training.explanation_stage import ExplanationStage
from .training.loop import Run, fit
from .training.recipe import PRESETS, Places, TrainingConfig

AREA_WEIGHTS = (1.0, 0.66, 0.5, 0.4, 0.33)
NEIGHBOURHOODS = (14, 17, 21, 24, 28)
BASE = "λ₁ 0.5, 21 x 21"

PAPERS = (
    "area_weight",
    "area_warmup",
    "response",
    "exponent",
    "fall_only",
    "fill",
    "agreement",
    "scaled",
    "follows",
    "full_from",
    "gamma",
    "mask_balanced",
    "keep",
)
"""What every variant takes from the preset "paper"."""


def variants(config: TrainingConfig) -> dict[str, TrainingConfig]:
    """The ablation's recipes by name; the first is the paper's own."""
    papers = {name: PRESETS["paper"][name] for name in PAPERS}
    base = replace(config, **papers, neighbourhood=21, preservation=0.0, objective="nemt")
    found = {BASE: base}
    found |= {f"λ₁ {w}": replace(base, area_weight=w) for w in AREA_WEIGHTS if w != 0.5}
    found |= {f"{n} x {n}": replace(base, neighbourhood=n) for n in NEIGHBOURHOODS if n != 21}
    found["no filter"] = replace(base, neighbourhood=1)
    found["literal equation (2)"] = replace(base, objective="literal")
    return found


def run_ablation(config: TrainingConfig, places: Places, progress: Progress) -> str:
    """Runs all variants and returns their table; it, a plot and the figures go to `places.out`.

    A second call with the same `places.out` computes only what is missing. Raises `DataError` where
    no test image has ground truth.
    """
    if (config.teachers and not places.target_model) or places.keep_module:
        raise TrainingError("the ablation has neither teachers nor a module that is kept")
    recipes = variants(config)
    config = recipes[BASE]
    require_writable(places.out)
    make_repeatable(config)
    places.out.mkdir(parents=True, exist_ok=True)
    team = Team.join(config.device)
    if team.size > 1:
        raise DataError("the ablation runs in one process; leave torchrun out")
    prepared = prepare(config, places, team, progress)
    _require_same(config, prepared, places, progress)
    test = load_split(prepared.dataset, "test", config, places, progress)
    rows, regions = ground_truth(test)
    if not len(rows):
        raise DataError("no test image has boxes or a lesion mask, so nothing can be measured")

    bare = replace(Run.bare(config, prepared.network, team), progress=progress)
    if places.target_model is None:
        stage = ClassifierStage(
            prepared.network,
            prepared.train,
            prepared.validation,
            config,
            frozen_stages=frozen_stages(config, places),
        )
        path = places.out / "target-model.pt"
        kept = replace(bare, checkpoints=CheckpointFile(path), goes_on=path.is_file())
        fit(stage, prepared.train, kept)
    results: dict[str, Scores] = {}
    for name, recipe in recipes.items():
        path = places.out / f"{file_name(name)}.json"
        if not path.is_file():
            row = _measure(prepared, replace(bare, config=recipe, epochs=[]), test, rows, regions)
            with writing(path):
                write_whole(path, row.model_dump_json(exclude_none=True))
        results[name] = Scores.model_validate_json(path.read_bytes())
    text = report.ablation_table(results)
    write_whole(places.out / "ablation.md", text + "\n")
    report.draw_ablation(places.out / "ablation.png", results)
    return text


def _measure(
    prepared: Prepared,
    variant: Run,
    test: Examples,
    rows: NDArray[np.intp],
    regions: Regions,
) -> Scores:
    """Trains one variant's explanation module from its beginning, and measures it."""
    network, recipe = prepared.network, variant.config
    network.smoothing.side = recipe.neighbourhood
    torch.manual_seed(recipe.seed)
    for module in network.explanation_module.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    stage = ExplanationStage(
        network, prepared.train, prepared.validation, recipe, collapse_ends=False
    )
    fit(stage, prepared.train, variant)
    images = test.take(rows)
    patients = Patients(test.patients).take(rows)
    _, masks = soft_masks(network, images)
    compared = Compared(
        images=images, truth=regions, probability=network.probability, device=recipe.device
    )
    columns = scores(compared, Attributed(by_row=dict(enumerate(masks))), is_mask=True)
    columns["area"] = masks.mean(axis=(1, 2))
    row = methods_table({NEMT: columns}, patients)[NEMT].scores
    variant.progress.note(
        f"relevance mass {show(row.relevance_mass)}, relevance rank {show(row.relevance_rank)}"
    )
    return row


def _require_same(
    config: TrainingConfig, prepared: Prepared, places: Places, progress: Progress
) -> None:
    """Raises `TrainingError` where the folder holds another ablation, or something else."""
    begun = config.to_manifest() | {"begun_with": begun_with(prepared, places, processes=1)}
    path = places.out / "config.json"
    if path.is_file():
        require_same(begun, path, progress)
    elif any(places.out.iterdir()):
        raise TrainingError(f"{places.out} is not empty; choose a new folder")
    path.write_text(json.dumps(begun, indent=2) + "\n", encoding="utf-8")
