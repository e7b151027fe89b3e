"""Mixed precision on a CPU: which convolutions stay in float32, and what it makes of gradients."""

import pytest
import torch
from torch import nn

from trainer.training.precision import mixed_precision


@pytest.mark.parametrize(
    ("layer", "trained", "dtype"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), False, torch.float32),
        (nn.Conv2d(8, 8, 3, groups=8), False, torch.bfloat16),
        (nn.Conv2d(8, 8, 5, groups=8), True, torch.float32),
        (nn.Conv2d(8, 16, 3, stride=2), True, torch.bfloat16),
        (nn.Conv2d(8, 16, 1), True, torch.bfloat16),
    ],
)
def test_only_depthwise_convolutions_with_slow_gradients_stay_in_float32(
    layer: nn.Conv2d, trained: bool, dtype: torch.dtype
) -> None:
    layer.requires_grad_(trained)
    images = torch.rand(2, 8, 12, 12, requires_grad=True)
    with mixed_precision("cpu", enabled=True):
        assert layer(images).dtype == dtype
        with torch.no_grad():
            assert layer(images).dtype == torch.bfloat16
    with mixed_precision("cpu", enabled=False):
        assert layer(images).dtype == torch.float32
    assert layer(images).dtype == torch.float32  # nothing of it stays behind


def test_a_convolution_called_by_keywords_is_the_same() -> None:
    images, weight = torch.rand(2, 8, 12, 12), torch.rand(8, 1, 3, 3, requires_grad=True)
    exact = torch.conv2d(images, weight, stride=2, groups=8)
    with mixed_precision("cpu", enabled=True):
        assert torch.equal(torch.conv2d(images, weight, stride=2, groups=8), exact)
        named = torch.conv2d(input=images, weight=weight, stride=2, groups=8)
    assert torch.allclose(named.float(), exact, rtol=0.02)


def test_gradients_are_those_of_float32_to_bfloat16s_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 5, stride=2, groups=16), nn.ReLU6()
    )
    images = torch.rand(4, 3, 24, 24)
    found = []
    for enabled in (True, False):
        model.zero_grad()
        with mixed_precision("cpu", enabled=enabled):
            loss = model(images).float().square().mean()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    mixed, exact = found
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    assert torch.nn.functional.cosine_similarity(mixed, exact, dim=0) > 0.999
