"""RELAX and U-RELAX: which pixels a representation depends on, by random masks.

K. Wickstrøm et al., RELAX: Representation Learning Explainability, IJCV 131 (2023). With a
representation h = f(X) of the image, h_n = f(X * M_n) of its masked copies, s the cosine
similarity and M_n random coarse masks in [0, 1], their estimators of importance and uncertainty
are, a pixel (i, j),

    R_ij = mean over n of s(h, h_n) M_n,ij
    U_ij = mean over n of (s(h, h_n) - R_ij)^2 M_n,ij

Both means are weighted by the mask (divided by the sum over n of M_n,ij), as in the one-pass form
that the authors publish. So a pixel is not more important because more masks showed it.
U-RELAX keeps R where U is below gamma times its median over the image, with gamma = 1.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..arrays import Images, Maps

Embedding = Callable[[Tensor], Tensor]
"""Images (B, C, S, S) in [0, 1] -> representations (B, D)."""

CELLS = 7
"""Cells a side of the coarse grid of a mask: the authors' number."""
KEPT = 0.5
"""Chance that a cell of the grid is shown."""


@torch.inference_mode()
def relax(
    embed: Embedding,
    images: Images,
    *,
    masks: int,
    seed: int = 0,
    batch: int = 50,
    device: str = "cpu",
) -> tuple[Maps, Maps]:
    """Importance and uncertainty of each pixel for each image's representation, (N, S, S) each.

    images: (N, C, S, S) in [0, 1]. Every image meets the same masks, drawn on the CPU from `seed`.
    They are not kept, so that no more than `batch` masked images are in memory. Removed pixels are
    black, as in the paper. Both results are at least 0; importance is at most 1.
    """
    pairs = [
        _of_one(embed, image[None].to(device), masks, torch.Generator().manual_seed(seed), batch)
        for image in torch.from_numpy(images)
    ]
    importance, uncertainty = zip(*pairs, strict=True)
    return torch.stack(importance).cpu().numpy(), torch.stack(uncertainty).cpu().numpy()


def u_relax(importance: Maps, uncertainty: Maps, gamma: float = 1.0) -> Maps:
    """Importance where its uncertainty is below `gamma` times its median, 0 elsewhere."""
    limit = gamma * np.median(uncertainty, axis=(-2, -1), keepdims=True)
    return np.where(uncertainty < limit, importance, np.float32(0))


def random_masks(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, 1, side, side) in [0, 1], 1 = shown: a coarse random grid, upsampled and shifted.

    The grid is drawn one cell larger than the image and cut out at a random place, so that the
    cells' edges lie anywhere.
    """
    cell = -(-side // CELLS)
    grid = torch.rand(count, 1, CELLS + 1, CELLS + 1, generator=generator) < KEPT
    larger = (CELLS + 1) * cell
    smooth = F.interpolate(grid.float(), size=(larger, larger), mode="bilinear")
    places = torch.randint(0, larger - side + 1, (count, 2), generator=generator).tolist()
    cut = [m[:, y : y + side, x : x + side] for m, (y, x) in zip(smooth, places, strict=True)]
    return torch.stack(cut)


def _of_one(
    embed: Embedding, image: Tensor, count: int, generator: torch.Generator, batch: int
) -> tuple[Tensor, Tensor]:
    """R and U (S, S) of one image (1, C, S, S), from running sums of M, s M and s^2 M.

    In double precision, for U is a small difference: sum (s - R)^2 M = sum s^2 M - R^2 sum M.
    """
    side = image.shape[-1]
    whole = embed(image)
    sums = torch.zeros(3, side, side, dtype=torch.float64, device=image.device)
    for start in range(0, count, batch):
        masks = random_masks(min(batch, count - start), side, generator).to(image.device)
        similarity = F.cosine_similarity(embed(image * masks), whole).double()
        powers = torch.stack([similarity**0, similarity, similarity**2])
        sums += torch.einsum("kn,nij->kij", powers, masks[:, 0].double())
    weight = sums[0].clamp(min=1e-12)
    importance = sums[1] / weight
    uncertainty = (sums[2] / weight - importance**2).clamp(min=0)
    return importance.float(), uncertainty.float()
