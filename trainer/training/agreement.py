"""Whether a mask follows how much single squares of its image matter.

    agreement = correlation over squares R of mean(mask in R) with fall(R)
    fall(R) = response(x) - response(x with R black)

It asks in training what FaithfulnessEstimate (Alvarez-Melis and Jaakkola 2018) asks afterwards, of
squares anywhere instead of the map's own levels. The falls are those of occlusion as an explanation
(Zeiler and Fergus 2014); the module learns to foretell them in one pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nemt_dicom.model.network import ExplainedNetwork

REGIONS = 9
"""Squares of an image that are removed, each alone, to compare the mask with what they matter."""

SQUARE_NUMBERS = 1 + 2 * REGIONS
"""Random numbers that the squares of an image take: their size, and each one's two places."""

SMALLEST_SQUARE, LARGEST_SQUARE = 0.11, 0.27
"""Shares of the image's side."""


def squares(images: Tensor, choice: Tensor | None) -> Tensor:
    """REGIONS squares of one size in each image, wherever they lie: (B, REGIONS, S, S) bool.

    choice: (B, SQUARE_NUMBERS) in [0, 1); None: three by three squares of the middle size.
    """
    count, side = len(images), images.shape[-1]
    if choice is None:
        thirds = (torch.arange(3) + 0.5) / 3
        grid = torch.cartesian_prod(thirds, thirds).flatten()
        choice = torch.cat([torch.tensor([0.5]), grid]).to(images.device).expand(count, -1)
    wide = SMALLEST_SQUARE + (LARGEST_SQUARE - SMALLEST_SQUARE) * choice[:, :1, None]
    wide = (wide * side).round().clamp(min=1)
    first = (choice[:, 1:].view(count, REGIONS, 2) * (side - wide + 1)).floor()
    place = torch.arange(side, device=images.device).view(1, 1, 1, -1)
    inside = (place >= first[..., None]) & (place < (first + wide)[..., None])  # (B, REGIONS, 2, S)
    return inside[:, :, 0, :, None] & inside[:, :, 1, None, :]


def agreement_with_squares(
    network: ExplainedNetwork,
    images: Tensor,
    logits: Tensor,
    mask: Tensor,
    choice: Tensor | None,
    *,
    response: Callable[[Tensor], Tensor],
) -> Tensor:
    """The agreement of every image, (B,) in [-1, 1], with a gradient to the mask alone.

    If p of the explained output is below 1/2, there is nothing to explain: the agreement is 1.

    images: (B, C, S, S) in [0, 1].
    logits: (B, outputs), of the images.
    mask: (B, 1, S, S) in [0, 1], 1 = evidence.
    choice: see `squares`.
    response: makes a response (B,) of log odds (B,).
    """
    logits = logits.detach()
    index = network.explained_index(logits)
    whole = network.log_odds(logits, index)
    result = torch.ones_like(whole)
    rows = torch.nonzero(whole > 0)[:, 0]
    if not len(rows):
        return result
    regions = squares(images, choice)[rows]
    with torch.no_grad():
        without = torch.stack(
            [
                network.log_odds(network.logits(image * ~square[:, None]), output.expand(REGIONS))
                for image, square, output in zip(images[rows], regions, index[rows], strict=True)
            ]
        )
        falls = response(whole[rows, None]) - response(without)
    inside = regions.flatten(2).float()
    marked = (mask[rows].float().flatten(2) * inside).sum(dim=2) / inside.sum(dim=2)
    return result.index_put((rows,), correlation(marked, falls))


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, along the last axis of (B, N): (B,) in [-1, 1]; 0 if either is constant."""
    one, other = (v - v.mean(dim=-1, keepdim=True) for v in (one, other))
    spread = (one.square().mean(dim=-1) * other.square().mean(dim=-1)).clamp(min=1e-12).sqrt()
    return (one * other).mean(dim=-1) / spread
