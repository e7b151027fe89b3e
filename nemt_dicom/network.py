"""The frozen target model, the explanation module on its features, and the smoothing operator.

One pass of the encoder serves both the prediction and the mask (paper, section 3: the NEM-U
architecture). All images here are (B, 1, S, S) float32 in [0, 1]; all masks are (B, 1, S, S)
float32 in [0, 1] with **1 = evidence for the target**.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Fill = Literal["black", "mean", "blur"]
"""What takes the place of removed pixels."""

BLUR_SIGMA = 10.0
"""Standard deviation of the blurred fill, in pixels of a 224-pixel frame."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything needed to build the network before its weights are loaded.

    backbone: a timm model name. outputs: the labels of its outputs, in order, each a sigmoid.
    target: the explained one of them. pixel_mean, pixel_std: normalisation of the backbone's input.
    decoder_width: channels of the light decoder. neighbourhood: side of the smoothing window.
    """

    backbone: str
    outputs: tuple[str, ...]
    target: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    decoder: Literal["light"]
    decoder_width: int
    neighbourhood: int

    def __post_init__(self) -> None:
        if self.target not in self.outputs:
            raise ValueError(f"target {self.target!r} is not one of the outputs {self.outputs}")
        if self.neighbourhood < 1:
            raise ValueError("neighbourhood is at least 1 (1: no smoothing)")

    def to_manifest(self) -> dict[str, Any]:
        """The JSON form kept in a bundle."""
        return asdict(self)


class LightDecoder(nn.Module):
    """Explanation module: encoder features, fine to coarse -> one mask logit a pixel.

    Each stage from stride 4 on is projected to `width` channels and summed top-down; the logits
    at stride 4 are upsampled once, for the smoothing blurs finer detail away anyway. Unlike the
    paper's U-Net decoder (9 M parameters on ResNet-50) it has about 0.1 M.
    """

    def __init__(self, channels: list[int], reductions: list[int], width: int) -> None:
        super().__init__()
        self.first = next(i for i, reduction in enumerate(reductions) if reduction >= 4)
        used = channels[self.first :]
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in used)
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in used)
        self.mix = nn.ModuleList(_MixBlock(width) for _ in used)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """features[i]: (B, C_i, S / r_i, S / r_i) -> logits (B, 1, *size)."""
        x: Tensor | None = None
        used = features[self.first :]
        for i in reversed(range(len(used))):  # coarse to fine
            y: Tensor = self.norm[i](self.project[i](used[i]))
            if x is not None:
                y = y + F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False)
            x = self.mix[i](y)
        logits: Tensor = self.head(x)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class _MixBlock(nn.Module):
    """Depthwise 5 x 5 and an inverted pair of 1 x 1 convolutions, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.reduce = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x))
        mixed: Tensor = x + self.reduce(F.silu(self.expand(y)))
        return mixed


class NeighbourhoodAveraging(nn.Module):
    """Stochastic weighted neighbourhood averaging of a mask (paper, section 3.2.2).

    In training every mask of a batch meets its own random kernel with positive weights that sum
    to 1. In evaluation the kernel is the expectation of these, the uniform average, computed as
    two one-dimensional averages. The border is replicated: a circular border would carry evidence
    to the other side of the image.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, mask: Tensor) -> Tensor:
        """(B, 1, S, S) in [0, 1] -> the same shape and range."""
        if self.side == 1:
            return mask
        before = self.side // 2
        after = self.side - 1 - before
        padded = F.pad(mask, (before, after, before, after), mode="replicate")
        if not self.training:
            rows = F.avg_pool2d(padded, (self.side, 1), stride=1)
            return F.avg_pool2d(rows, (1, self.side), stride=1)
        batch = mask.shape[0]
        weights = torch.rand(batch, 1, self.side, self.side, device=mask.device, dtype=mask.dtype)
        weights = weights / weights.sum(dim=(-2, -1), keepdim=True)
        together = F.conv2d(padded.transpose(0, 1), weights, groups=batch)  # (1, B, S, S)
        return together.transpose(0, 1)


def _feature_shapes(target_model: Any) -> tuple[list[int], list[int]]:
    """Channels and strides of the feature maps, fine to coarse, by looking at them."""
    side = target_model.default_cfg.get("input_size", (3, 224, 224))[-1]
    target_model.eval()
    with torch.inference_mode():
        _, features = target_model.forward_intermediates(torch.zeros(1, 3, side, side))
    return [f.shape[1] for f in features], [round(side / f.shape[-1]) for f in features]


class ExplainedNetwork(nn.Module):
    """Target model and explanation module.

    The target model is frozen: always in evaluation mode, without gradients of its own weights.
    Build with `pretrained=False` only; weights come from a bundle or from the trainer.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.target_index = architecture.outputs.index(architecture.target)
        self.target_model: Any = timm.create_model(
            architecture.backbone, pretrained=False, num_classes=len(architecture.outputs)
        )
        channels, reductions = _feature_shapes(self.target_model)
        self.explanation_module = LightDecoder(channels, reductions, architecture.decoder_width)
        self.smoothing = NeighbourhoodAveraging(architecture.neighbourhood)
        mean, std = torch.tensor(architecture.pixel_mean), torch.tensor(architecture.pixel_std)
        self.register_buffer("pixel_mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(1, 3, 1, 1), persistent=False)
        self.target_model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "ExplainedNetwork":
        """Sets the mode of the explanation module; the target model stays in evaluation mode."""
        super().train(mode)
        self.target_model.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) in [0, 1] -> (B, 3, S, S) as the backbone expects."""
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (images - mean) / std

    def logits(self, images: Tensor) -> Tensor:
        """The target model alone: (B, 1, S, S) -> (B, outputs)."""
        result: Tensor = self.target_model(self.normalise(images))
        return result

    def probability(self, images: Tensor) -> Tensor:
        """Probability of the target: (B, 1, S, S) -> (B,) in [0, 1]."""
        return torch.sigmoid(self.logits(images)[:, self.target_index].float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One encoder pass: (B, 1, S, S) -> logits (B, outputs), mask (B, 1, S, S)."""
        last, features = self.target_model.forward_intermediates(self.normalise(images))
        logits: Tensor = self.target_model.forward_head(last)
        mask = torch.sigmoid(self.explanation_module(features, tuple(images.shape[-2:])))
        return logits, self.smoothing(mask)

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of the target (B,) and its mask (B, 1, S, S)."""
        logits, mask = self(images)
        return torch.sigmoid(logits[:, self.target_index].float()), mask


def filled(images: Tensor, fill: Fill) -> Tensor:
    """What takes the place of removed pixels, (B, 1, S, S)."""
    if fill == "black":
        return torch.zeros_like(images)
    if fill == "mean":
        return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)
    return blurred(images, BLUR_SIGMA * images.shape[-1] / 224)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur with replicated border; sigma in pixels."""
    radius = min(int(3 * sigma + 0.5), images.shape[-1] - 1)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1))


def remove(images: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """The evidence removed: `x * (1 - mask) + fill * mask`, all (B, 1, S, S)."""
    return images * (1 - mask) + fill * mask


def responses_without_and_with(
    network: ExplainedNetwork, images: Tensor, segment: Tensor, fill: Fill
) -> tuple[Tensor, Tensor]:
    """Probabilities (B,) with the segment removed and with only the segment kept, in one pass.

    segment: (B, 1, S, S) of 0 and 1.
    """
    background = filled(images, fill)
    both = torch.cat([remove(images, segment, background), remove(images, 1 - segment, background)])
    occluded, kept = network.probability(both).chunk(2)
    return occluded, kept
