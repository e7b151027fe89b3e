"""The paper's ablation (its appendix A.3) on one target model: one command, a table and a plot.

Each variant trains the explanation module anew with the paper's objective (deletion form, response
probability, exponent 2, black fill, no warm-up) and one thing changed, and is measured on the test
images that have ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.errors import DataError, TrainingError
from nemt_dicom.files import write_whole
from nemt_dicom.model.evaluation import Scores

from .arrays import Regions
from .data.examples import Examples
from .data.ground_truth import ground_truth
from .data.layouts import file_name
from .evaluation.maps import Attributed
from .evaluation.scores import Compared, methods_table, scores
from .evaluation.settings import NEMT
from .inference import soft_masks
from .markdown import show
from .prepare import (
    Prepared,
    account_of_start,
    frozen_stages,
    load_split,
    make_repeatable,
    prepare,
    require_same,
    require_writable,
    write_account,
)
from .progress import Progress
from .report import training_curves as report
from .statistics import Patients
from .training.checkpoint import CheckpointFile, writing
from .training.classifier import ClassifierStage
from .training.distributed import Team
from .training.explanation_stage import ExplanationStage
from .training.loop import Run, fit
from .training.places import Places
from .training.recipe import Recipe
from .training.recipe_file import changed, preset

BASE = "λ₁ 0.5, 21 x 21"
"""Name of the paper's setting, which each variant changes in one thing."""

PAPERS = (
    "explanation_module.area_weight",
    "explanation_module.area_warmup",
    "explanation_module.agreement",
    "explanation_module.response",
    "explanation_module.exponent",
    "explanation_module.fall_only",
    "explanation_module.scaled",
    "explanation_module.fill",
    "explanation_module.follows",
    "explanation_module.balanced",
    "explanation_module.keep",
    "serving.gamma",
)
"""What every variant takes from the recipe "paper"."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The variants beside the paper's setting: table A.1 and its neighbours.

    area_weights: values of λ₁.
    neighbourhoods: sides of the smoothing window in pixels.
    """

    area_weights: Sequence[float] = (1.0, 0.66, 0.5, 0.4, 0.33)
    neighbourhoods: Sequence[int] = (14, 17, 21, 24, 28)

    def recipes(self, recipe: Recipe) -> dict[str, Recipe]:
        """The recipe of each variant by its name; the first is the paper's setting."""
        paper = dict(preset("paper").values())
        setting = {name: paper[name] for name in PAPERS} | {
            "explanation_module.objective": "nemt",
            "explanation_module.neighbourhood": 21,
        }
        base = changed(recipe, setting)
        changes: dict[str, tuple[str, Any]] = {}
        changes |= {f"λ₁ {w}": ("area_weight", w) for w in self.area_weights if w != 0.5}
        changes |= {f"{n} x {n}": ("neighbourhood", n) for n in self.neighbourhoods if n != 21}
        changes["no filter"] = ("neighbourhood", 1)
        changes["literal equation (2)"] = ("objective", "literal")
        return {BASE: base} | {
            variant: changed(base, {f"explanation_module.{name}": value})
            for variant, (name, value) in changes.items()
        }


def run_ablation(
    recipe: Recipe, places: Places, progress: Progress, ablation: Ablation | None = None
) -> str:
    """Runs all variants and returns their table; it, a plot and the figures go to `places.out`.

    ablation: the variants; None: the paper's. A second call with the same `places.out` computes
    only what is missing. Raises `DataError` if no test image has ground truth.
    """
    if (recipe.target_model.teachers and not places.target_model) or places.keep_module:
        raise TrainingError("the ablation has neither teachers nor a module that is kept")
    recipes = (ablation or Ablation()).recipes(recipe)
    recipe = recipes[BASE]
    require_writable(places.out)
    make_repeatable(recipe)
    places.out.mkdir(parents=True, exist_ok=True)
    team = Team.join(recipe.run.device)
    if team.size > 1:
        raise DataError("the ablation runs in one process; leave torchrun out")
    prepared = prepare(recipe, places, team, progress)
    _require_same(recipe, prepared, places, progress)
    test = load_split(prepared.dataset, "test", recipe, places, progress)
    rows, regions = ground_truth(test)
    if not len(rows):
        raise DataError("no test image has boxes or a lesion mask, so nothing can be measured")
    bare = replace(Run.bare(recipe, prepared.network, team), progress=progress)
    if places.target_model is None:
        _train_target_model(prepared, recipe, places, bare)
    results: dict[str, Scores] = {}
    for name, variant in recipes.items():
        path = places.out / f"{file_name(name)}.json"
        if not path.is_file():
            row = _measure(prepared, replace(bare, recipe=variant, epochs=[]), test, rows, regions)
            with writing(path):
                write_whole(path, row.model_dump_json(exclude_none=True))
        results[name] = Scores.model_validate_json(path.read_bytes())
    text = report.ablation_table(results)
    with writing(places.out):
        write_whole(places.out / "ablation.md", text + "\n")
        report.draw_ablation(places.out / "ablation.png", results)
    return text


def _train_target_model(prepared: Prepared, recipe: Recipe, places: Places, bare: Run) -> None:
    """Trains it, or takes it from an earlier call; its checkpoint stays beside the results."""
    stage = ClassifierStage(
        prepared.network,
        prepared.train,
        prepared.validation,
        recipe,
        frozen_stages=frozen_stages(recipe, places),
    )
    path = places.out / "target-model.pt"
    kept = replace(bare, checkpoints=CheckpointFile(path), goes_on=path.is_file())
    fit(stage, prepared.train, kept)


def _measure(
    prepared: Prepared,
    variant: Run,
    test: Examples,
    rows: NDArray[np.intp],
    regions: Regions,
) -> Scores:
    """Trains one variant's explanation module from its beginning, and measures it.

    rows: numbers of the test images that have ground truth. regions: (n, S, S) bool, that truth.
    """
    network, recipe = prepared.network, variant.recipe
    network.smoothing.side = recipe.explanation_module.neighbourhood
    torch.manual_seed(recipe.run.seed)
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
        images=images, truth=regions, probability=network.probability, device=recipe.run.device
    )
    columns = scores(compared, Attributed(by_row=dict(enumerate(masks))), is_mask=True)
    columns["area"] = masks.mean(axis=(1, 2))
    row = methods_table({NEMT: columns}, patients)[NEMT].scores
    variant.progress.note(
        f"relevance mass {show(row.relevance_mass)}, relevance rank {show(row.relevance_rank)}"
    )
    return row


def _require_same(recipe: Recipe, prepared: Prepared, places: Places, progress: Progress) -> None:
    """Raises `TrainingError` if the folder holds another ablation, or something else."""
    account = account_of_start(recipe, prepared, places, processes=1)
    path = places.out / "config.json"
    if path.is_file():
        require_same(account, path, progress)
    elif any(places.out.iterdir()):
        raise TrainingError(f"{places.out} is not empty; choose a new folder")
    with writing(path):
        write_account(path, account)
