"""The stage that trains the target model, a classifier.

Loss: binary cross-entropy of the target's output, or cross-entropy if the classes exclude each
other, with smoothed labels. The weights make every source count the same and, in each source, every
label. The validation AUC, too, is the mean over the sources: they differ in what they call a
positive, and the larger one would drown the one that radiologists labelled. A running average of
the weights is validated and kept. On a few hundred images it wavers less than the weights do.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import ExplainedNetwork

from ..data.examples import Examples
from ..inference import probabilities
from ..statistics import area_under_curve
from .augment import add_noise, augment, occlude
from .checkpoint import State, Weights
from .draws import Draws, shuffled
from .loop import prodigy
from .recipe import Recipe, TargetModel
from .stage import Batch, Losses

CLASSIFIER = "classifier"
"""The name of the stage that trains the target model that is kept."""


class ClassifierStage:
    """Trains the target model; see `stage.Stage`.

    frozen_stages: number of backbone stages that keep their weights.
    teachers: trained networks of the same architecture, whose mean answer is learnt; none: labels.
    """

    advice = "try a smaller target_model.learning_rate"

    def __init__(
        self,
        network: ExplainedNetwork,
        train: Examples,
        validation: Examples,
        recipe: Recipe,
        *,
        frozen_stages: int,
        name: str = CLASSIFIER,
        teachers: Sequence[ExplainedNetwork] = (),
    ) -> None:
        self.name = name
        settings = recipe.target_model
        self.epochs, self.patience = settings.epochs, settings.patience
        self._network, self._validation, self._recipe = network, validation, recipe
        self._count = len(train)
        network.target_model.requires_grad_(True)
        for weight in first_weights(network.target_model, frozen_stages):
            weight.requires_grad_(False)
        self.module: nn.Module = _ClassifierLoss(network, train, settings, teachers)
        parameters = [p for p in network.target_model.parameters() if p.requires_grad]
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimiser: torch.optim.Optimizer = (
            prodigy(parameters, rate, decay)
            if settings.optimiser == "prodigy"
            else torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        )
        self._average: Any = None
        if settings.average:
            self._average = AveragedModel(
                network.target_model,
                multi_avg_fn=get_ema_multi_avg_fn(settings.average),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )

    def order(self, epoch: int) -> NDArray[np.intp]:
        """Every example once."""
        return shuffled((self._recipe.run.seed, self.name, epoch), self._count)

    def augmented(self, images: Tensor, draws: Draws) -> Tensor:
        """Turned, moved and scaled; occluded if the recipe asks for it; noisy at last."""
        settings = self._recipe.augmentation
        images = augment(images, draws, mirror=settings.mirror)
        if self._recipe.target_model.occlusion:
            images = occlude(images, draws)
        return add_noise(images, draws, settings.noise)

    def begin_epoch(self) -> None:
        """Training mode of the target model. Frozen stages, too, take these images' statistics."""
        self._network.target_model.train()

    def before_step(self, done: float) -> None:
        """AdamW: warm-up over the first 5 % of all steps, then half a cosine down to 1 %."""
        settings = self._recipe.target_model
        if settings.optimiser == "adamw":
            warm = 0.05
            share = (
                (done + 0.005) / (warm + 0.005)
                if done < warm
                else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
            )
            for group in self.optimiser.param_groups:
                group["lr"] = settings.learning_rate * share

    def after_step(self) -> None:
        """The running average takes the new weights in."""
        if self._average is not None:
            self._average.update_parameters(self._network.target_model)

    def validate(self, done: float) -> tuple[float, dict[str, float]]:
        """Minus the mean AUC of the sources, and each of them."""
        with self._averaged():
            p = probabilities(self._network, self._validation)
        aucs = auc_by_source(self._validation, p)
        auc = float(np.mean(list(aucs.values())))
        return -auc, {"auc": auc, **{f"auc_{k}": v for k, v in aucs.items()}}

    def tolerance(self, best: float) -> float:
        """One standard error of the validation AUC: epochs within it cannot be told apart.

        Of such epochs the later one is kept. AdamW trained it with a smaller step size.
        """
        return auc_standard_error(self._validation, -best)

    def weights(self) -> Weights:
        """The running average, or the weights themselves if there is none."""
        model = self._network.target_model if self._average is None else self._average.module
        weights: Weights = model.state_dict()
        return weights

    def keep(self, weights: Weights | None) -> None:
        """Freezes the target model."""
        if weights is not None:
            self._network.target_model.load_state_dict(weights)
        self._network.target_model.requires_grad_(False)
        self._network.eval()

    def state(self) -> State:
        """The running average."""
        return {} if self._average is None else {"average": self._average.state_dict()}

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network with what is kept, in evaluation mode."""
        model = self._network.target_model
        newest = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.weights())
        self._network.eval()
        yield
        model.load_state_dict(newest)


class _ClassifierLoss(nn.Module):
    def __init__(
        self,
        network: ExplainedNetwork,
        train: Examples,
        settings: TargetModel,
        teachers: Sequence[ExplainedNetwork],
    ) -> None:
        super().__init__()
        self.target_model = network.target_model
        self._network = [network]  # in a list: its explanation module is not trained here
        self._settings, self._teachers = settings, tuple(teachers)
        self._classes = torch.from_numpy(train.classes)
        labels, weights = targets(train, network.architecture.outputs, settings)
        self._labels, self._weights = torch.from_numpy(labels), torch.from_numpy(weights)

    def forward(self, batch: Batch) -> Losses:
        network, smoothing = self._network[0], self._settings.label_smoothing
        rows, device = batch.rows, batch.images.device
        logits = network.logits(batch.images).float()
        if self._teachers:
            return Losses(loss=self._against_teachers(batch.images, logits), figures={})
        weights = self._weights[rows].to(device)  # (b, outputs)
        if network.architecture.activation == "softmax":
            classes = self._classes[rows].to(device)
            smoothing = 2 * smoothing  # as much as a sigmoid's, between two ends
            loss = F.cross_entropy(logits, classes, label_smoothing=smoothing, reduction="none")
            return Losses(loss=weights[:, 0] * loss, figures={})
        labels = self._labels[rows].to(device)
        smooth = labels * (1 - 2 * smoothing) + smoothing
        loss = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return Losses(loss=(weights * loss).sum(dim=1), figures={})

    def _against_teachers(self, x: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy with the mean of the teachers' probabilities, (B,).

        Without the labels' weights, which say how far a label is trusted.
        """
        with torch.no_grad():
            taught = torch.stack([each.probabilities(x) for each in self._teachers]).mean(dim=0)
        if self._network[0].architecture.activation == "softmax":
            return F.cross_entropy(logits, taught, reduction="none")
        loss = F.binary_cross_entropy_with_logits(logits, taught, reduction="none")
        return loss[:, 0] + self._settings.auxiliary_weight * loss[:, 1:].sum(dim=1)


def first_weights(model: Any, stages: int) -> list[nn.Parameter]:
    """The parameters of a timm model up to the end of its stage number `stages`, in order.

    Raises `TrainingError` if it has fewer stages.
    """
    if not stages:
        return []
    if stages > len(model.feature_info):
        raise TrainingError(f"the backbone has {len(model.feature_info)} stages, not {stages}")
    last = model.feature_info[stages - 1]["module"]
    modules = list(model.named_modules())
    inside = [i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{last}.")]
    first = modules[: max(inside, default=-1) + 1]
    return [weight for _, module in first for weight in module.parameters(recurse=False)]


def balance(examples: Examples) -> NDArray[np.float32]:
    """A weight an example, mean 1: the same total for every source and label."""
    groups = [
        (case.source, int(k)) for case, k in zip(examples.cases, examples.classes, strict=True)
    ]
    size = {group: groups.count(group) for group in set(groups)}
    return np.array([len(groups) / len(size) / size[group] for group in groups], np.float32)


def targets(
    examples: Examples, outputs: tuple[str, ...], settings: TargetModel
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Labels and weights of the loss, (N, outputs) each; the weight of a label not known is 0.

    The target comes first. Its positives by text mining count less beside labels by radiologists.
    """
    cases, balanced = examples.cases, balance(examples)
    labels = np.zeros((len(cases), len(outputs)), np.float32)
    weights = np.zeros_like(labels)
    labels[:, 0], weights[:, 0] = examples.labels, balanced
    if not all(case.mined for case in cases):
        mined = np.array([case.mined and bool(case.label) for case in cases])
        weights[mined, 0] *= settings.mined_weight
    for column, name in enumerate(outputs[1:], start=1):
        for row, case in enumerate(cases):
            if name in case.findings:
                labels[row, column] = case.findings[name]
                weights[row, column] = settings.auxiliary_weight * balanced[row]
    return labels, weights


def auc_by_source(examples: Examples, probability: NDArray[np.float32]) -> dict[str, float]:
    """AUC of each source that has both labels; of all images together if no source has both.

    probability: (N,) in [0, 1]. Raises `TrainingError` if one of them is NaN.
    """
    if not np.isfinite(probability).all():
        raise TrainingError("the classifier gives NaN on validation images: try a smaller step")
    return {
        source: area_under_curve(probability[rows], examples.labels[rows])
        for source, rows in _comparable(examples).items()
    }


def auc_standard_error(examples: Examples, auc: float) -> float:
    """Standard error of the mean of `auc_by_source`, were each source's AUC `auc`.

    Hanley and McNeil, Radiology 143, 1982, equation 1.
    """
    two_above, one_above = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variances = []
    for rows in _comparable(examples).values():
        positive = float(examples.labels[rows].sum())
        negative = len(rows) - positive
        spread = (positive - 1) * (two_above - auc**2) + (negative - 1) * (one_above - auc**2)
        variances.append((auc * (1 - auc) + spread) / (positive * negative))
    return math.sqrt(sum(variances)) / len(variances)


def _comparable(examples: Examples) -> dict[str, NDArray[np.intp]]:
    """Rows of each source that has both labels; all rows if no source has both."""
    sources = np.array([case.source for case in examples.cases])
    rows = {str(source): np.flatnonzero(sources == source) for source in np.unique(sources)}
    both = {k: each for k, each in rows.items() if len(set(examples.labels[each] > 0.5)) == 2}
    return both or {"all": np.arange(len(examples))}
