"""The frozen target model and the explanation module on its features.

The method is that of the paper: Møller, Amiri, Igel, Wickstrøm, Jenssen, Keicher, Azampour, Navab,
Ibragimov: *NEMt: Fast Targeted Explanations for Medical Image Models via Neural Explanation Masks*.
One pass of the encoder gives both the prediction and the mask (section 3: the NEM-U architecture).

Images here are (B, C, S, S) float32 in [0, 1]; C is 1 for radiographs and 3 for colour photographs.
Masks are (B, 1, S, S) float32 in [0, 1]; **1 = evidence for the target**.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemt_dicom.model.decoders import (
    Decoder,
    LightDecoder,
    NeighbourhoodAveraging,
    Norm,
    UNetDecoder,
)

Fill = Literal["black", "mean", "blur"]
"""The pixels that replace removed pixels."""

BLUR_SIGMA = 10.0
"""Standard deviation of the blurred fill, in pixels of a 224-pixel frame."""


REPRESENTATION = "representation"
"""The target of a network whose whole embedding is explained (NEM-U)."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything needed to build the network before its weights are loaded.

    backbone: a timm model name.
    outputs: the labels of its outputs, in order.
    activation: "sigmoid" if each output is an independent label, "softmax" if the outputs are
        classes that exclude each other, "none" if the output is an embedding.
    target: the explained output, or "representation".
    explains: "target" (always that output), "predicted" (the output with the largest value) or
        "representation" (the whole embedding).
    embedding: number of values of the embedding that the backbone's head gives. 0 if there is no
        head and the embedding is the pooled features, and if no representation is explained.
    pixel_mean: mean of each channel, for the normalisation of the backbone's input.
    pixel_std: standard deviation of each channel, likewise.
    decoder: "light", or "unet" as in the paper.
    decoder_width: channels of the light decoder.
    decoder_norm: its normalisation.
    neighbourhood: side of the smoothing window; 1 is no smoothing.
    follows: whether the decoder gets the log odds of the explained output. The explanation is then
        also multiplied by the local probability.
    full_from: for a mask that follows. The decoder gets these log odds instead of the image's, so
        the shape of the mask shows where the evidence is, not how strong it is. The height of the
        mask shows the strength: it is full from these log odds on, and below them it falls as the
        square of the odds. None: the mask is served as it was trained.
    gamma: the mask is raised to this power. The ranking of places stays. Below 1, low values rise
        towards the effect that removing them has on the answer.
    """

    backbone: str
    outputs: tuple[str, ...]
    activation: Literal["sigmoid", "softmax", "none"]
    target: str
    explains: Literal["target", "predicted", "representation"]
    embedding: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    decoder: Literal["light", "unet"]
    decoder_width: int
    decoder_norm: Norm
    neighbourhood: int
    follows: bool
    full_from: float | None = None
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.explains == REPRESENTATION:
            if self.follows:
                raise ValueError("a representation has no log odds that a mask could follow")
            if (self.target, self.activation, self.outputs) != (REPRESENTATION, "none", ()):
                raise ValueError("a network that explains its representation has no other target")
        elif self.target not in self.outputs:
            raise ValueError(f"target {self.target!r} is not one of the outputs {self.outputs}")
        if self.activation == "softmax" and len(self.outputs) < 2:
            raise ValueError("classes that exclude each other are at least two")
        if self.neighbourhood < 1:
            raise ValueError("neighbourhood is at least 1 (1: no smoothing)")
        if self.full_from is not None and not self.follows:
            raise ValueError("a mask that does not follow the log odds has no height to be full")
        if not self.gamma > 0:
            raise ValueError("gamma is above 0 (1: the mask as it is trained)")
        if self.decoder_width % 8:
            raise ValueError("the decoder's width is a multiple of 8")

    def to_manifest(self) -> dict[str, Any]:
        """The JSON form kept in a bundle."""
        return asdict(self)


class Answer(NamedTuple):
    """The result of one pass.

    logits: (B, outputs), or the embedding (B, D).
    mask: (B, 1, S, S), 1 = evidence, as it is trained.
    weighed: the mask times the local probability if the architecture follows, otherwise the mask.
    """

    logits: Tensor
    mask: Tensor
    weighed: Tensor


@torch.inference_mode()
def _probe(target_model: Any) -> tuple[list[int], list[int], bool]:
    """Channels and strides of the feature maps, fine to coarse, and whether the head is local.

    A head is local if the logits are a linear function of the average of the last feature map. All
    three are measured on a test image.
    """
    side = target_model.default_cfg.get("input_size", (3, 224, 224))[-1]
    image = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
    last, features = target_model.eval().forward_intermediates(image)
    channels, strides = (
        [f.shape[1] for f in features],
        [round(side / f.shape[-1]) for f in features],
    )
    head = target_model.get_classifier()
    if last.ndim != 4 or not isinstance(head, nn.Linear) or last.shape[1] != head.in_features:
        return channels, strides, False
    logits, mean = target_model.forward_head(last), head(last.mean(dim=(-2, -1)))
    return channels, strides, torch.allclose(logits, mean, rtol=1e-3, atol=1e-4)


def _decoder(architecture: Architecture, channels: list[int], reductions: list[int]) -> Decoder:
    norm, follows = architecture.decoder_norm, architecture.follows
    if architecture.decoder == "unet":
        return UNetDecoder(channels, norm, follows=follows)
    return LightDecoder(channels, reductions, architecture.decoder_width, norm, follows=follows)


class ExplainedNetwork(nn.Module):
    """Target model and explanation module.

    The target model is frozen: always in evaluation mode, without gradients of its weights.
    Build with `pretrained=False` only; weights come from a bundle or from the trainer.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.explains_representation = architecture.explains == REPRESENTATION
        self.target_index = (
            0 if self.explains_representation else architecture.outputs.index(architecture.target)
        )
        self.target_model: Any = timm.create_model(
            architecture.backbone,
            pretrained=False,
            num_classes=len(architecture.outputs) or architecture.embedding,
        )
        channels, strides, self._head_is_local = _probe(self.target_model)
        self.explanation_module = _decoder(architecture, channels, strides)
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
        """(B, C, S, S) in [0, 1] -> (B, 3, S, S) as the backbone expects."""
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (images - mean) / std

    def logits(self, images: Tensor) -> Tensor:
        """The target model alone: (B, C, S, S) -> (B, outputs), or its embedding (B, D)."""
        result: Tensor = self.target_model(self.normalise(images))
        return result

    def explained_index(self, logits: Tensor) -> Tensor:
        """Index of the explained output of each image: (B, outputs) -> (B,) int64."""
        if self.architecture.explains == "predicted":
            return logits.detach().argmax(dim=1)
        return torch.full((len(logits),), self.target_index, device=logits.device)

    def explained_output(self, images: Tensor) -> Tensor:
        """Index of the explained output of each image: (B, C, S, S) -> (B,) int64."""
        if self.architecture.explains == "predicted":
            return self.explained_index(self.logits(images))
        return torch.full((len(images),), self.target_index, device=images.device)

    def log_odds(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """log(p / (1 - p)) of one output of each image: (B, outputs) -> (B,).

        index: the output, (B,) int64; None for the explained output.

        For a sigmoid output it is the logit. For a class it is the logit of the class minus the
        logarithm of the sum of the exponentials of all other logits.
        """
        if self.explains_representation:
            raise ValueError("a representation has no probability")
        index = self.explained_index(logits) if index is None else index
        logits = logits.float()
        chosen = logits.gather(1, index[:, None])
        if self.architecture.activation == "sigmoid":
            return chosen[:, 0]
        competing = logits.scatter(1, index[:, None], float("-inf"))
        return chosen[:, 0] - competing.logsumexp(dim=1)

    def local_log_odds(self, last: Tensor, logits: Tensor) -> Tensor:
        """Log odds of the explained output at each place of the last feature map, (B, 1, h, w).

        If the head is local (see `_probe`), the logits are the average of these values: the class
        activation map. Any other head has no such map; the result is its one value, (B, 1, 1, 1).
        """
        index = self.explained_index(logits)
        if not self._head_is_local:
            return self.log_odds(logits, index).view(-1, 1, 1, 1)
        head = self.target_model.get_classifier()
        places = head(last.movedim(1, -1)).flatten(1, 2)  # (B, h · w, outputs)
        count = places.shape[1]
        local = self.log_odds(places.flatten(0, 1), index.repeat_interleave(count))
        return local.view(-1, 1, *last.shape[-2:])

    def probability(self, images: Tensor) -> Tensor:
        """Probability of the explained output: (B, C, S, S) -> (B,) in [0, 1]."""
        return torch.sigmoid(self.log_odds(self.logits(images)))

    def probabilities(self, images: Tensor) -> Tensor:
        """Probability of every output: (B, C, S, S) -> (B, outputs) in [0, 1]."""
        logits = self.logits(images).float()
        exclusive = self.architecture.activation == "softmax"
        return logits.softmax(dim=1) if exclusive else torch.sigmoid(logits)

    def forward(self, images: Tensor, kernels: Tensor | None = None) -> Answer:
        """Prediction and mask in one encoder pass, as they are trained.

        images: (B, C, S, S).
        kernels: random smoothing kernels (B, side, side), as in training; None: their expectation.
        """
        return self._answer(images, kernels, None)

    def explain(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The explained answer, and its mask (B, 1, S, S) as it is served and measured.

        The answer is the probability of the explained output (B,), or the embedding (B, D).
        """
        full_from = self.architecture.full_from
        logits, _, weighed = self._answer(images, None, full_from)
        served = weighed**self.architecture.gamma
        if self.explains_representation:
            return logits.float(), served
        log_odds = self.log_odds(logits)
        if full_from is not None:
            served = served * torch.exp(2 * (log_odds - full_from).clamp(max=0)).view(-1, 1, 1, 1)
        return torch.sigmoid(log_odds), served

    def _answer(self, images: Tensor, kernels: Tensor | None, told: float | None) -> Answer:
        """One pass. If the architecture follows and `told` is not None, the decoder gets `told`
        instead of the log odds of the image.
        """
        x = self.normalise(images)
        last, features = self.target_model.forward_intermediates(x)
        logits: Tensor = self.target_model.forward_head(last)
        if not self.architecture.follows:
            mask = self.smoothing(self.explanation_module.mask(x, features, None), kernels)
            return Answer(logits, mask, mask)
        local, log_odds = self.local_log_odds(last, logits), self.log_odds(logits)
        if told is not None:
            local = local + (told - log_odds).view(-1, 1, 1, 1)
            log_odds = torch.full_like(log_odds, told)
        mask = self.smoothing(self.explanation_module.mask(x, features, log_odds), kernels)
        finer = F.interpolate(local, size=mask.shape[-2:], mode="bilinear")
        return Answer(logits, mask, mask * torch.sigmoid(finer))


def filled(images: Tensor, fill: Fill) -> Tensor:
    """The pixels that replace removed pixels, (B, C, S, S)."""
    if fill == "black":
        return torch.zeros_like(images)
    if fill == "mean":
        return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)
    return blurred(images, BLUR_SIGMA * images.shape[-1] / 224)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur with replicated border; sigma in pixels.

    A wide blur is computed on a smaller, averaged image. It costs a tenth of the time, and neither
    the eye nor the network sees a difference.
    """
    size = images.shape[-2:]
    shrink = max(1, int(sigma / 2.5))
    if shrink > 1:
        coarse = [max(1, round(side / shrink)) for side in size]
        images = F.interpolate(images, size=coarse, mode="area")
        sigma /= shrink
    radius = min(int(3 * sigma + 0.5), images.shape[-1] - 1)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    each = images.flatten(0, 1).unsqueeze(1)  # (B · C, 1, S, S)
    padded = F.pad(each, (radius, radius, radius, radius), mode="replicate")
    with torch.autocast(images.device.type, enabled=False):
        rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
        soft = F.conv2d(rows, kernel.view(1, 1, 1, -1)).view_as(images)
    return soft if shrink == 1 else F.interpolate(soft, size=size, mode="bilinear")


def remove(images: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
    """The evidence removed: `x * (1 - mask) + fill * mask`; images and fill (B, C, S, S)."""
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
