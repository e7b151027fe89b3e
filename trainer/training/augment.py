"""What happens to a training image at random. Each function is told its random numbers."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nemt_dicom.model.network import filled, remove

from .draws import Draws


def augment(images: Tensor, draws: Draws, *, mirror: bool) -> Tensor:
    """Each image (B, C, S, S) turned, moved, scaled and its brightness curve bent a little.

    Turned by up to 8 degrees, moved by up to 5 % of the side, scaled by 0.9 to 1.1; gamma 0.75 to
    1.33, contrast 0.8 to 1.2, brightness by up to 0.1. Never upside down: no radiograph is.
    """
    u = draws.uniform("augment", 8).to(images.device).view(-1, 8, 1, 1)

    def between(column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * u[:, column : column + 1]

    angle, scale = between(0, -8, 8) * math.pi / 180, between(1, 1 / 1.1, 1 / 0.9)
    flip = torch.where(u[:, 2:3] < 0.5, -1.0, 1.0) if mirror else torch.ones_like(angle)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    side = images.shape[-1]
    centres = (2 * torch.arange(side, dtype=u.dtype, device=u.device) + 1) / side - 1
    x, y = centres.view(1, 1, 1, -1), centres.view(1, 1, -1, 1)  # in units of half a side
    from_x = cos * flip * x + (between(3, -0.1, 0.1) - sin * y)
    from_y = sin * flip * x + (between(4, -0.1, 0.1) + cos * y)
    with torch.autocast(images.device.type, enabled=False):
        grid = torch.stack([from_x[:, 0], from_y[:, 0]], dim=-1)  # (B, S, S, 2)
        bent = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    bent.clamp_(min=1e-6).pow_(torch.exp(between(5, -0.29, 0.29)))
    contrast, brightness = between(6, 0.8, 1.2), between(7, -0.1, 0.1)
    return bent.sub_(0.5).mul_(contrast).add_(0.5 + brightness).clamp_(0, 1)


def add_noise(images: Tensor, draws: Draws, largest: float) -> Tensor:
    """Each image (B, C, S, S) with normal noise, its standard deviation anywhere up to `largest`.

    A classifier that never meets noise answers to it, and so do the masks that explain it.
    """
    if not largest:
        return images
    u = draws.uniform("noise", 1 + images[0].numel()).to(images.device)
    normal = (2 * u[:, 1:] - 1).clamp_(-0.9999, 0.9999).erfinv_().mul_(math.sqrt(2))
    return normal.mul_(largest * u[:, :1]).view_as(images).add_(images).clamp_(0, 1)


def occlude(images: Tensor, draws: Draws) -> Tensor:
    """Every second image (B, C, S, S) with random blobs, 5 to 35 % of it, black or blurred.

    The blobs' edges are soft and they cover by 0.5 to 1, as masks do while they are trained. A
    classifier that never saw removed pixels takes them for a finding, and p falls wherever
    anything is removed. After this training p falls if evidence is removed.
    """
    u = draws.uniform("occlude", 53).to(images.device)
    chosen = u[:, 51] < 0.5
    if not chosen.any():
        return images
    u, some = u[chosen], images[chosen]
    noise = u[:, :49].view(-1, 1, 7, 7)
    field = F.interpolate(noise, size=images.shape[-2:], mode="bicubic", align_corners=False)
    share = 0.05 + 0.3 * u[:, 49]
    every = max(1, images.shape[-1] // 56)  # pixels enough to tell the share by
    flat = field[:, :, ::every, ::every].flatten(1)
    ranks = ((1 - share) * (flat.shape[1] - 1)).long().tolist()
    levels = [row.kthvalue(rank + 1).values for row, rank in zip(flat, ranks, strict=True)]
    level = torch.stack(levels).view(-1, 1, 1, 1)
    cover = (0.5 + 0.5 * u[:, 50]).view(-1, 1, 1, 1)
    blobs = cover * torch.sigmoid((field - level) * 20)
    black = u[:, 52].view(-1, 1, 1, 1) < 0.5
    background = torch.where(black, filled(some, "black"), filled(some, "blur"))
    result = images.clone()
    result[chosen] = remove(some, blobs, background).to(images.dtype)
    return result


def smoothing_kernels(draws: Draws, side: int, device: torch.device) -> Tensor | None:
    """A random kernel an image, positive and summing to 1: (B, side, side), None for side 1.

    Paper, section 3.2.2.
    """
    if side == 1:
        return None
    weights = draws.uniform("smoothing", side * side).to(device) + 1e-6
    return (weights / weights.sum(dim=1, keepdim=True)).view(-1, side, side)
