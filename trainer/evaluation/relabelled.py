"""Label randomisation: does a mask change when the model has learnt nothing of the target?

J. Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 4. Two short runs of the
bundle's own recipe without teachers, the same but that one sees its training labels shuffled.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..manifest import start_of
from ..progress import Progress
from ..run import frozen_stages, make_repeatable, prepare
from ..training.classifier import ClassifierStage
from ..training.distributed import Team
from ..training.explanation_stage import ExplanationStage, soft_masks
from ..training.loop import Run, fit
from ..training.precision import has_bfloat16
from ..training.recipe import FORMERLY, Places, TrainingConfig
from .maps import Attributed
from .metrics import area_under_curve
from .model_dependence import similarity
from .plan import Evaluation
from .scores import Evaluated, average, figure, scores, table

CLASSIFIER_EPOCHS, MASK_EPOCHS = 2, 1


def label_randomisation(
    bundle: Bundle,
    folders: Sequence[Path],
    cache: Path,
    found: Evaluation,
    progress: Progress,
    *,
    threads: int,
) -> dict[str, Any]:
    """Similarity of the two runs' masks, and mass, area and AUC of each, JSON-able."""
    recipe = bundle.manifest.training["recipe"]
    known = {field.name for field in fields(TrainingConfig)}
    given: Any = {
        k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items() if k in known
    }
    epochs = {"classifier_epochs": CLASSIFIER_EPOCHS, "mask_epochs": MASK_EPOCHS}
    device = found.compared.device
    here = {"threads": threads, "device": device, "bfloat16": has_bfloat16(device)}
    config = TrainingConfig(**(FORMERLY | given | epochs | here))
    result: dict[str, Any] = dict(epochs)
    masks = {}
    for name in ("true", "shuffled"):
        network = _train(config, folders, cache, progress, shuffled=name == "shuffled")
        masks[name] = soft_masks(network, found.compared.images)[1]
        probability, _ = soft_masks(network, found.examples.images)
        columns = scores(
            Evaluated(images=found.compared.images, truth=found.compared.truth, probability=None),
            Attributed(found=dict(enumerate(masks[name]))),
            gated=True,
        )
        result[name] = table({name: columns}, found.patients)[name] | {
            "area": round(float(masks[name].mean()), 4),
            "auc": round(area_under_curve(probability, found.examples.labels), 4),
        }
    alike = similarity(masks["true"], masks["shuffled"])
    return result | {"similarity": figure(average(alike), found.patients)}


def require_own_recipe(bundle: Bundle) -> None:
    """Raises `DataError` where a bundle's target model cannot be trained again as it was.

    A file that it was, or that its training started from, is not here.
    """
    start = start_of(bundle.manifest.training)
    given = start["target_model_file"] or start["initial_weights_file"]
    if bundle.architecture.explains != "target" or given:
        raise DataError(
            "label randomisation trains the target model anew, and this bundle's was given, "
            "started from given weights or has no target: leave --label-randomisation out"
        )


def _train(
    config: TrainingConfig,
    folders: Sequence[Path],
    cache: Path,
    progress: Progress,
    *,
    shuffled: bool,
) -> ExplainedNetwork:
    make_repeatable(config)
    places = Places(folders=tuple(folders), out=cache, cache=cache)  # nothing goes to `out`
    team = Team.join(config.device)
    try:
        prepared = prepare(config, places, team, progress)
        if shuffled:
            train = _shuffle(prepared.train, config.seed)
            prepared = replace(prepared, train=train)
        stages = replace(Run.bare(config, prepared.network, team), progress=progress)
        frozen = frozen_stages(config, places)
        data = prepared.train, prepared.validation
        classifier = ClassifierStage(prepared.network, *data, config, frozen_stages=frozen)
        fit(classifier, prepared.train, stages)
        stage = ExplanationStage(prepared.network, *data, config, collapse_ends=False)
        fit(stage, prepared.train, stages)
    finally:
        team.leave()
    return prepared.network.eval()


def _shuffle(examples: Examples, seed: int) -> Examples:
    """The same images with each other's labels, all that is known of one together."""
    order = np.random.default_rng(seed).permutation(len(examples))
    names = ("label", "class_index", "findings", "mined", "source")
    cases = tuple(
        replace(case, **{name: getattr(examples.cases[j], name) for name in names})
        for case, j in zip(examples.cases, order.tolist(), strict=True)
    )
    return replace(examples, cases=cases)
