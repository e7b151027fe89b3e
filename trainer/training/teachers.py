"""The target models that are trained first, whose mean answer the one that is kept learns.

A classifier of a few hundred images is worth what its draws happen to be. The mean of several is
worth more than most of them, and one network can learn it (Hinton, Vinyals and Dean, Distilling the
Knowledge in a Neural Network, 2015), best on the very images that its teachers are asked about, as
augmentation leaves them (Beyer et al., Knowledge distillation: A good teacher is patient and
consistent, CVPR 2022).
"""

import copy
from pathlib import Path

from safetensors.torch import load_file, save_file

from nemt_dicom.files import replacing
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from .checkpoint import writing
from .classifier import ClassifierStage
from .loop import Run, fit


def train_teachers(
    train: Examples, validation: Examples, run: Run, folder: Path, *, frozen_stages: int
) -> list[ExplainedNetwork]:
    """The trained teachers, as many as the recipe says, each a copy of the run's network.

    The run's network stays as it is. The teachers' weights are kept in `folder` for a run that is
    resumed; `forget_teachers` deletes them.
    """
    network, teachers = run.network, []
    for number in range(1, run.recipe.target_model.teachers + 1):
        run.network = copy.deepcopy(network)
        stage = ClassifierStage(
            run.network,
            train,
            validation,
            run.recipe,
            frozen_stages=frozen_stages,
            name=f"teacher {number}",
        )
        fit(stage, train, run)
        path = folder / f"teacher-{number}.safetensors"
        if path.is_file():  # the run was resumed after this one's end
            run.network.target_model.load_state_dict(load_file(path))
        elif run.team.first:
            _save(run.network, path)
        run.team.wait()
        teachers.append(run.network)
    run.network = network
    return teachers


def forget_teachers(folder: Path) -> None:
    """Deletes the kept weights, once the bundle is whole and nothing is left to resume."""
    for path in folder.glob("teacher-*.safetensors"):
        path.unlink()


def _save(network: ExplainedNetwork, path: Path) -> None:
    weights = network.target_model.state_dict()
    with writing(path), replacing(path) as draft:
        save_file({name: value.contiguous() for name, value in weights.items()}, draft)
