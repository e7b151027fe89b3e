"""RISE and smooth pixel masks: where the target model looks, measured on changed images.

Both explain the output that the explanation module explains. Images are (N, C, S, S) float32 in
[0, 1]; maps (N, S, S) float32 in [0, 1], high = evidence.

RISE: V. Petsiuk, A. Das, K. Saenko, RISE: Randomized Input Sampling for Explanation of Black-box
Models, BMVC 2018. With random masks M_i, each cell shown with chance q, the importance of a pixel
is the mean over masks of p(x * M_i) M_i, divided by q (equation 6).

Smooth pixel masks: R. Fong, M. Patrick, A. Vedaldi, Understanding Deep Networks via Extremal
Perturbations and Smooth Masks, ICCV 2019. Of all smooth masks m that keep a share a of the image,
the one with which the response is largest (equation 2); the share is held by a penalty on the
sorted mask (equation 4), the smoothness by a maximum convolution (equation 8).
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from nemt_dicom.model.network import ExplainedNetwork, blurred, remove

from ..arrays import Images, Maps
from ..inference import device_of
from .relax import KEPT, random_masks

GRID = 32
"""Cells a side of the mask that is optimised: a cell every 7 pixels of 224, as the authors."""
SMOOTHNESS = 3.0
"""Width of the maximum convolution's Gaussian, in cells: the authors' 21 pixels of 224."""
TEMPERATURE = 1 / 20
"""Temperature of the soft maximum over cells."""
PENALTY, LAST_PENALTY = 0.1, 3000.0
"""Weight of the area's penalty in the first and the last step. It starts low, so that the response
decides which cells the area is spent on. With the authors' 300 at the start the masks kept less:
log odds of 0.43, 0.72, 0.92 and -0.19 instead of 0.18, 3.0, 1.07 and 0.23 (shipped bundle).
"""
BLUR = 20.0
"""Standard deviation of the blur that hides pixels, in pixels of a 224-pixel image."""


@torch.inference_mode()
def rise(
    network: ExplainedNetwork,
    images: Images,
    *,
    masks: int,
    seed: int = 0,
    batch: int = 50,
) -> Maps:
    """RISE's importance of each pixel for the probability (equation 6); hidden pixels are black.

    images: (N, C, S, S) in [0, 1]. Returns (N, S, S), at least 0. Every image meets the same masks.
    """
    device = device_of(network)
    maps = []
    for image in torch.from_numpy(images)[:, None].to(device):
        generator = torch.Generator().manual_seed(seed)
        index = network.explained_output(image)
        total = torch.zeros(images.shape[-2:], dtype=torch.float64, device=device)
        for start in range(0, masks, batch):
            shown = random_masks(min(batch, masks - start), images.shape[-1], generator).to(device)
            p = network.probabilities(image * shown)[:, index[0]]
            total += torch.einsum("n,nij->ij", p.double(), shown[:, 0].double())
        maps.append((total / (masks * KEPT)).float())
    return torch.stack(maps).cpu().numpy()


def smooth_pixel_mask(
    network: ExplainedNetwork, images: Images, *, area: float, steps: int
) -> Maps:
    """The smooth mask of share `area` for which the log odds are largest, the rest being blurred.

    images: (N, C, S, S) in [0, 1]. steps: of Adam. Returns (N, S, S) in [0, 1].
    """
    device = device_of(network)
    side = images.shape[-1]
    x = torch.from_numpy(images).to(device)
    hidden = blurred(x, BLUR * side / 224)
    index = network.explained_output(x)
    cells = torch.full((len(x), GRID * GRID), 0.5, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([cells], lr=0.05)
    for step in range(steps):
        weight = PENALTY * (LAST_PENALTY / PENALTY) ** (step / steps)
        coarse = maximum_convolution(cells)
        mask = F.interpolate(coarse, size=side, mode="bilinear", align_corners=False)
        kept = network.log_odds(network.logits(remove(x, 1 - mask, hidden)), index)
        loss = (weight * _area_penalty(coarse.flatten(1), area) - kept).sum()
        (cells.grad,) = torch.autograd.grad(loss, cells)
        optimiser.step()
        with torch.no_grad():
            cells.clamp_(0, 1)
    with torch.no_grad():
        mask = F.interpolate(maximum_convolution(cells), size=side, mode="bilinear")
    return mask[:, 0].cpu().numpy()


def maximum_convolution(cells: Tensor) -> Tensor:
    """(B, GRID * GRID) -> (B, 1, 2 GRID, 2 GRID), smooth and as high as the highest cell near.

    Each point is the soft maximum of the cells, each weighted by a Gaussian of its distance. It is
    divided by its value for cells that are all 1: without that the border would be higher, because
    fewer cells are near it.
    """
    nearness = _nearness(cells.device)
    return (_soft_maximum(cells[:, None, :] * nearness) / _soft_maximum(nearness)).view(
        len(cells), 1, 2 * GRID, 2 * GRID
    )


def _soft_maximum(values: Tensor) -> Tensor:
    """The soft maximum over the last axis."""
    return (values * torch.softmax(values / TEMPERATURE, dim=-1)).sum(dim=-1)


@lru_cache(maxsize=2)
def _nearness(device: torch.device) -> Tensor:
    """(points, cells) in (0, 1]: the Gaussian of the distance of each point to each cell."""
    points = (torch.arange(2 * GRID, device=device) - 0.5) / 2
    line = torch.exp(
        -0.5 * ((points[:, None] - torch.arange(GRID, device=device)) / SMOOTHNESS) ** 2
    )
    both = line[:, None, :, None] * line[None, :, None, :]
    return both.reshape(4 * GRID * GRID, GRID * GRID)


def _area_penalty(mask: Tensor, area: float) -> Tensor:
    """Mean squared distance of each sorted mask (B, n) to one with that share of ones: (B,)."""
    count = mask.shape[1]
    wanted = torch.zeros(count, device=mask.device)
    wanted[round(count * (1 - area)) :] = 1
    return ((mask.sort(dim=1).values - wanted) ** 2).mean(dim=1)
