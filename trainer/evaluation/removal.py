"""How p changes when the pixels that a map marks are removed, or when they alone are shown.

Deletion and insertion: V. Petsiuk et al., RISE, BMVC 2018, section 4.2. ROAD: Y. Rong et al., A
Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022, by the library
`grad-cam`. Removed pixels are filled in from their neighbours, so that no hole is left.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemt_dicom.model.network import Fill, filled

from ..metrics import AsModule

Map = NDArray[np.float32]
Curve = NDArray[np.float64]
Response = Callable[[Tensor], Tensor]
"""Images (B, C, S, S) in [0, 1] -> probability of the output explained (B,)."""

AT_ONCE = 64
"""Images in one pass."""
FILLS: tuple[Fill, ...] = ("black", "blur")
"""What takes the place of pixels that are not shown."""
ROAD_SHARES = (10, 30, 50)
"""Per cent of the pixels that ROAD removes."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """p as a function of the share of pixels, (steps + 1,) from 0 to 1, highest first.

    deletion: with the share removed; a low curve is good.
    insertion: with the share alone shown; a high curve is good.
    """

    deletion: Curve
    insertion: Curve


def curves(
    attribution: Map, image: Map, response: Response, fill: Fill, device: str, *, steps: int
) -> Curves:
    """Deletion and insertion of one image (C, S, S) in [0, 1] by its map (S, S)."""
    whole = torch.from_numpy(image)[None].to(device)
    empty = filled(whole, fill)
    count = attribution.size
    order = np.argsort(-attribution.ravel(), kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    shown = np.stack([rank < round(count * k / steps) for k in range(steps + 1)])
    mask = torch.from_numpy(shown.reshape(-1, 1, *attribution.shape)).to(device)
    changed = torch.cat([torch.where(mask, empty, whole), torch.where(mask, whole, empty)])
    with torch.inference_mode():
        p = torch.cat([response(part) for part in torch.split(changed, AT_ONCE)])
    both = p.cpu().numpy().astype(np.float64)
    return Curves(deletion=both[: steps + 1], insertion=both[steps + 1 :])


def area_under(curve: Curve) -> float:
    """Area under a curve over shares from 0 to 1, by trapezoids."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def road(attribution: Map, image: Map, response: Response, device: str) -> float:
    """ROAD of one image: half of p without the least relevant pixels less p without the most.

    The mean over `ROAD_SHARES`, in [-0.5, 0.5]. Higher is better; 0 for a constant map.
    """
    if not attribution.max() > attribution.min():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam.metrics.road import ROADCombined  # noqa: PLC0415

        with torch.random.fork_rng():
            torch.manual_seed(0)  # for the noise that it adds
            scores = ROADCombined(percentiles=[100 - share for share in ROAD_SHARES])(
                torch.from_numpy(image)[None].to(device),
                attribution[None],
                [lambda output: output[0]],
                AsModule(response),
            )
    return float(scores[0])
