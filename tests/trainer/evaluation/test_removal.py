"""Removal curves and ROAD with known answers, and against their libraries."""

import warnings

import numpy as np
import pytest
import torch

from tests.trainer.map_kit import BOX, bright, linear, pictures
from trainer.evaluation import removal

STEPS = 16


def test_removal_curves_known_answers() -> None:
    image = np.ones((1, 20, 20), np.float32)
    share = BOX.mean()
    for attribution, first, last in ((BOX, 0, 1), (~BOX, 1, 0)):
        both = removal.curves(
            attribution.astype(np.float32), image, bright, "black", "cpu", steps=STEPS
        )
        steps = STEPS + 1
        assert both.deletion.shape == both.insertion.shape == (steps,)
        assert both.deletion + both.insertion == pytest.approx(np.ones(steps))
        assert (both.deletion[0], both.deletion[-1]) == (1, 0)
        after = both.deletion[int(np.ceil(share * STEPS)) : -1]
        assert after[:-2] == pytest.approx(np.full(len(after) - 2, first))
        area = share / 2 if last else 1 - share / 2
        assert removal.area_under(both.deletion) == pytest.approx(area, abs=0.04)


def test_deletion_is_quantus_pixel_flipping() -> None:
    """Its curve begins after the first step; both remove the same pixels, highest first."""
    from quantus import PixelFlipping

    images = pictures(3)
    side = images.shape[-1]
    maps = np.random.default_rng(2).random((3, side, side)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PixelFlipping(
            features_in_step=side * side // STEPS, perturb_baseline=0.0,
            disable_warnings=True, normalise=False, abs=False,
        )(
            model=_Module(linear), x_batch=images.copy(), y_batch=np.zeros(3, int),
            a_batch=maps[:, None], channel_first=True, softmax=False, device="cpu",
        )  # fmt: skip
    for image, attribution, curve in zip(images, maps, expected, strict=True):
        found = removal.curves(attribution, image, linear, "black", "cpu", steps=STEPS)
        assert found.deletion[1:] == pytest.approx(np.array(curve), abs=1e-6)


class _Module(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images)[:, None]


def test_road_is_its_librarys_and_knows_right_from_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam.metrics.road import ROADCombined

    image = np.random.default_rng(3).random((1, 20, 20), np.float32) * 0.2
    image[0, BOX] += 0.8
    right = (BOX + np.random.default_rng(4).random((20, 20)) * 0.1).astype(np.float32)
    found = removal.road(right, image, bright, "cpu")
    assert found > 0.1
    assert removal.road(1 - right, image, bright, "cpu") < -0.1
    assert removal.road(np.ones((20, 20), np.float32), image, bright, "cpu") == 0
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ROADCombined(percentiles=[90, 70, 50])(
            torch.from_numpy(image)[None], right[None], [lambda p: p], bright
        )
    assert found == pytest.approx(float(expected[0]), abs=1e-6)
