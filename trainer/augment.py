"""What happens to a training image at random. Each function is told its random numbers."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nemt_dicom.network import filled, remove

from .draws import Draws


def augment(images: Tensor, draws: Draws, *, mirror: bool) -> Tensor:
    """Each image (B, C, S, S) turned, moved, scaled and its brightness curve bent a little.

    Turned by up to 8 degrees, moved by up to 5 % of the side, scaled by 0.9 to 1.1; gamma 0.75 to
    1.33, contrast 0.8 to 1.2, brightness by up to 0.1. Never upside down: no radiograph is.
    """
    u = draws.uniform("augment", 8).to(images.device)

    def between(column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * u[:, column]

    angle, scale = between(0, -8, 8) * math.pi / 180, between(1, 1 / 1.1, 1 / 0.9)
    flip = torch.where(u[:, 2] < 0.5, -1.0, 1.0) if mirror else torch.ones_like(angle)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, between(3, -0.1, 0.1)], dim=1),
            torch.stack([sin * flip, cos, between(4, -0.1, 0.1)], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3), in units of half a side
    with torch.autocast(images.device.type, enabled=False):  # or the grid is a fifth pixel off
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    gamma = torch.exp(between(5, -0.29, 0.29)).view(-1, 1, 1, 1)
    contrast = between(6, 0.8, 1.2).view(-1, 1, 1, 1)
    brightness = between(7, -0.1, 0.1).view(-1, 1, 1, 1)
    bent = moved.clamp(min=1e-6) ** gamma
    return (contrast * (bent - 0.5) + 0.5 + brightness).clamp(0, 1)


def add_noise(images: Tensor, draws: Draws, largest: float) -> Tensor:
    """Each image (B, C, S, S) with normal noise, its standard deviation anywhere up to `largest`.

    A classifier that never meets noise answers to it, and so do the masks that explain it.
    """
    if not largest:
        return images
    u = draws.uniform("noise", 1 + images[0].numel()).to(images.device)
    normal = torch.erfinv((2 * u[:, 1:] - 1).clamp(-0.9999, 0.9999)) * math.sqrt(2)
    deviation = (largest * u[:, 0]).view(-1, 1, 1, 1)
    return (images + deviation * normal.view_as(images)).clamp(0, 1)


def occlude(images: Tensor, draws: Draws) -> Tensor:
    """Every second image (B, C, S, S) with random blobs, 5 to 35 % of it, black or blurred.

    The blobs' edges are soft and they cover by 0.5 to 1, as masks do while they are trained. A
    classifier that never saw removed pixels takes them for a finding, and p falls wherever
    anything is removed. After this it falls where evidence is removed.
    """
    u = draws.uniform("occlude", 53).to(images.device)
    chosen = u[:, 51] < 0.5
    if not chosen.any():
        return images
    u, some = u[chosen], images[chosen]
    noise = u[:, :49].view(-1, 1, 7, 7)
    field = F.interpolate(noise, size=images.shape[-2:], mode="bicubic", align_corners=False)
    share = 0.05 + 0.3 * u[:, 49]
    flat = field.flatten(1)
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
