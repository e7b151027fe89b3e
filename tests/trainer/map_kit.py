"""Regions, images and models with known answers, for the tests of metrics, scores and removal."""

import numpy as np
import torch


def region(rows: slice, columns: slice, side: int = 20) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[rows, columns] = True
    return mask


BOX = region(slice(4, 12), slice(6, 10))
"""8 % of the image."""
BOXES = np.stack([np.roll(BOX, 3 * i, axis=0) for i in range(4)])
SIDE = 56
WEIGHTS = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def linear(images: torch.Tensor) -> torch.Tensor:
    """A p whose fall, when a pixel is made black, is known: its weight times its value."""
    weighted: torch.Tensor = (images * WEIGHTS / WEIGHTS.sum()).sum(dim=(1, 2, 3))
    return weighted


def pictures(count: int, channels: int = 1) -> np.ndarray:
    """Noise whose smallest value is 0, so that Quantus' black is black."""
    images = np.random.default_rng(0).random((count, channels, SIDE, SIDE), dtype=np.float32)
    images[:, 0, 0, 0] = 0
    return images


def bright(images: torch.Tensor) -> torch.Tensor:
    """P is the share of the region's light that is left."""
    return images[:, 0][:, torch.from_numpy(BOX)].mean(dim=1)
