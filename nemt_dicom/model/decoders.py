"""Explanation modules: encoder features in, mask logits out, and the smoothing of the mask."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group"]
"""The normalisation in a decoder. Group norm reads no other image of the batch, so the result does
not depend on the number of processes."""

Features = list[Tensor]
"""Feature maps of the encoder, fine to coarse: (B, C_i, S / r_i, S / r_i)."""

UNET_WIDTHS = (256, 128, 64, 32, 16)
"""Channels of the paper's decoder, coarse to fine."""

FIRST_GAIN = 1.0
"""Gain before training: the logits of the mask and the log odds of the target are added up."""

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(8, channels),
}


class Decoder(nn.Module):
    """The base of every decoder.

    gain: factor of the log odds of the explained output in the mask's logits, learnt. None if the
        mask does not follow the prediction.
    """

    def __init__(self, *, follows: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(FIRST_GAIN)) if follows else None

    def mask(self, images: Tensor, features: Features, log_odds: Tensor | None) -> Tensor:
        """The mask before smoothing, (B, 1, S, S) in [0, 1].

        images: (B, 3, S, S).
        log_odds: of the explained output (B,), or None.
        """
        logits: Tensor = self(images, features)
        if self.gain is not None and log_odds is not None:
            logits = logits + self.gain * log_odds.detach().view(-1, 1, 1, 1)
        return torch.sigmoid(logits)


class LightDecoder(Decoder):
    """Encoder features -> one mask logit for each pixel, with about 0.1 M parameters.

    Each stage from stride 4 on is projected to `width` channels and added from coarse to fine. The
    logits at stride 4 are upsampled once: the smoothing would blur finer detail anyway.
    """

    def __init__(
        self, channels: list[int], reductions: list[int], width: int, norm: Norm, *, follows: bool
    ) -> None:
        super().__init__(follows=follows)
        self.first = next(i for i, reduction in enumerate(reductions) if reduction >= 4)
        used = channels[self.first :]
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in used)
        self.norm = nn.ModuleList(_NORMS[norm](width) for _ in used)
        self.mix = nn.ModuleList(_MixBlock(width, norm) for _ in used)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor, features: Features) -> Tensor:
        """images: (B, 3, S, S) as the encoder saw them -> logits (B, 1, S, S)."""
        x: Tensor | None = None
        used = features[self.first :]
        for i in reversed(range(len(used))):  # coarse to fine
            y: Tensor = self.norm[i](self.project[i](used[i]))
            if x is not None:
                y = y + F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False)
            x = self.mix[i](y)
        logits: Tensor = self.head(x)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class _MixBlock(nn.Module):
    """Depthwise 5 x 5 and an inverted pair of 1 x 1 convolutions, residual."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm = _NORMS[norm](width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.reduce = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x))
        mixed: Tensor = x + self.reduce(F.silu(self.expand(y)))
        return mixed


class UNetDecoder(Decoder):
    """The paper's decoder (section 4.2): a U-Net on every stage and on the image itself.

    Each block upsamples to the next finer map (nearest), joins it, and has two 3 x 3 convolutions
    with norm and SiLU; 256, 128, 64, 32 and 16 channels. 9.0 M parameters on ResNet-50.
    """

    def __init__(self, channels: list[int], norm: Norm, *, follows: bool) -> None:
        super().__init__(follows=follows)
        if len(channels) > len(UNET_WIDTHS):
            raise ValueError(f"a U-Net decoder takes {len(UNET_WIDTHS)} stages at most")
        joined = [*channels[-2::-1], 3]  # coarse to fine, then the image
        inputs = [channels[-1], *UNET_WIDTHS]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *_conv(below + skip, width, norm),
                *_conv(width, width, norm),
            )
            for below, skip, width in zip(inputs, joined, UNET_WIDTHS, strict=False)
        )
        self.head = nn.Conv2d(UNET_WIDTHS[len(joined) - 1], 1, 3, padding=1)

    def forward(self, images: Tensor, features: Features) -> Tensor:
        """images: (B, 3, S, S) as the encoder saw them -> logits (B, 1, S, S)."""
        x = features[-1]
        for block, skip in zip(self.blocks, [*features[-2::-1], images], strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _conv(before: int, after: int, norm: Norm) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, padding=1, bias=False), _NORMS[norm](after), nn.SiLU()


class NeighbourhoodAveraging(nn.Module):
    """Stochastic weighted neighbourhood averaging of a mask (paper, section 3.2.2).

    In training, each mask of a batch is averaged with a different random kernel, which the trainer
    draws. Its weights are positive and sum to 1. Without kernels the result is the expectation, the
    uniform average, as two one-dimensional averages: the explanation of an image is always the
    same. The border is replicated: a circular border would carry evidence to the other side.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, mask: Tensor, kernels: Tensor | None = None) -> Tensor:
        """(B, 1, S, S) in [0, 1] -> the same shape and range; kernels: (B, side, side) or None."""
        if self.side == 1:
            return mask
        before = self.side // 2
        after = self.side - 1 - before
        padded = F.pad(mask, (before, after, before, after), mode="replicate")
        if kernels is None:
            rows = F.avg_pool2d(padded, (self.side, 1), stride=1)
            return F.avg_pool2d(rows, (1, self.side), stride=1)
        weights = kernels.to(mask.dtype).unsqueeze(1)
        together = F.conv2d(padded.transpose(0, 1), weights, groups=len(mask))  # (1, B, S, S)
        return together.transpose(0, 1)
