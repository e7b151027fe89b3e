"""The network: smoothing, removal, one encoder pass, a target model that never changes."""

import numpy as np
import pytest
import torch
from conftest import random_network
from torch.nn import functional as F

from nemt_dicom.network import (
    Architecture,
    ExplainedNetwork,
    Fill,
    NeighbourhoodAveraging,
    blurred,
    filled,
    remove,
    responses_without_and_with,
)

SIDES = [1, 2, 5, 20, 21]


def images(count: int = 2, side: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 1, 9, 9, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def naive_average(mask: np.ndarray, side: int) -> np.ndarray:
    """Every pixel the mean of its neighbourhood, the border repeated: written out."""
    before, after = side // 2, side - 1 - side // 2
    padded = np.pad(mask, ((before, after), (before, after)), mode="edge")
    result = np.empty_like(mask)
    for row, column in np.ndindex(mask.shape):
        result[row, column] = padded[row : row + side, column : column + side].mean()
    return result


# --- smoothing ---


@pytest.mark.parametrize("side", SIDES)
def test_evaluation_is_the_uniform_average(side: int) -> None:
    mask = torch.rand(2, 1, 40, 33)
    found = NeighbourhoodAveraging(side).eval()(mask)
    for i in range(2):
        assert np.allclose(found[i, 0], naive_average(mask[i, 0].numpy(), side), atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("training", [True, False])
def test_constant_stays_constant(side: int, training: bool) -> None:
    smoothing = NeighbourhoodAveraging(side).train(training)
    for value in (0.0, 0.3, 1.0):
        found = smoothing(torch.full((3, 1, 48, 48), value))
        assert torch.allclose(found, torch.full_like(found, value), atol=1e-5)


@pytest.mark.parametrize("side", [5, 20, 21])
def test_training_kernels_are_positive_sum_to_one_and_differ(side: int) -> None:
    """A single bright pixel shows the kernel itself."""
    mask = torch.zeros(4, 1, 64, 64)
    mask[:, :, 32, 32] = 1
    kernels = NeighbourhoodAveraging(side).train()(mask)
    assert (kernels >= 0).all()
    assert torch.allclose(kernels.sum(dim=(-2, -1)), torch.ones(4, 1), atol=1e-5)
    assert ((kernels > 0).sum(dim=(-2, -1)) == side * side).all()
    for i in range(3):
        assert not torch.allclose(kernels[i], kernels[i + 1])


def test_training_gives_another_kernel_each_pass() -> None:
    smoothing = NeighbourhoodAveraging(21).train()
    mask = torch.rand(1, 1, 64, 64)
    assert not torch.equal(smoothing(mask), smoothing(mask))


def test_expectation_of_training_is_evaluation() -> None:
    smoothing = NeighbourhoodAveraging(21)
    mask = torch.rand(1, 1, 48, 48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        many = smoothing.train()(mask.expand(400, -1, -1, -1)).mean(dim=0)
    one = smoothing.eval()(mask)[0]
    single = (smoothing.train()(mask)[0] - one).abs().max()
    assert (many - one).abs().max() < 0.003
    assert (many - one).abs().max() < single / 3


@pytest.mark.parametrize("training", [True, False])
def test_evidence_does_not_come_out_at_the_other_side(training: bool) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :3, :] = 1
    found = NeighbourhoodAveraging(21).train(training)(mask)
    assert found[..., :8, :].min() > 0
    assert (found[..., 20:, :] == 0).all()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 0, 0] = 1
    found = NeighbourhoodAveraging(21).train(training)(mask)
    assert (found[..., :, 20:] == 0).all()


def test_smoothing_passes_gradients() -> None:
    mask = torch.rand(2, 1, 48, 48, requires_grad=True)
    NeighbourhoodAveraging(21).train()(mask).sum().backward()
    assert mask.grad is not None
    assert mask.grad.sum() == pytest.approx(2 * 48 * 48, rel=1e-3)


# --- one encoder pass ---

BACKBONES = ["test_efficientnet", "test_resnet", "test_convnext", "resnet10t", "efficientnet_lite0"]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_one_pass_gives_the_classifiers_own_logits(backbone: str) -> None:
    network = random_network(backbone)
    batch = images()
    logits, mask = network(batch)
    assert torch.allclose(logits, network.target_model(network.normalise(batch)), atol=1e-5)
    assert torch.allclose(logits, network.logits(batch), atol=1e-5)
    assert logits.shape == (2, 2)
    assert mask.shape == batch.shape
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask.std() > 0
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(mask[0], mask[1], atol=1e-4)
    probability, again = network.explain(batch)
    assert torch.equal(again, mask)
    assert torch.allclose(probability, torch.sigmoid(logits[:, 1]))
    assert torch.allclose(probability, network.probability(batch), atol=1e-5)


@torch.inference_mode()
def test_encoder_runs_once() -> None:
    network = random_network()
    calls = []
    network.target_model.conv_stem.register_forward_hook(lambda *_: calls.append(1))
    network.explain(images())
    assert len(calls) == 1


@torch.inference_mode()
def test_evaluation_is_deterministic_and_independent_of_the_batch() -> None:
    network = random_network()
    batch = images(4)
    probability, mask = network.explain(batch)
    assert torch.equal(network.explain(batch)[1], mask)
    for i in range(4):
        alone, its_mask = network.explain(batch[i : i + 1])
        assert torch.allclose(alone, probability[i : i + 1], atol=1e-5)
        assert torch.allclose(its_mask, mask[i : i + 1], atol=1e-5)


@torch.inference_mode()
def test_pixels_are_normalised_as_the_backbone_expects() -> None:
    network = random_network()
    found = network.normalise(torch.full((1, 1, 4, 4), 0.5))
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    assert found.shape == (1, 3, 4, 4)
    assert torch.allclose(found[0, :, 0, 0], torch.tensor(expected), atol=1e-6)


# --- the target model is frozen ---


def test_training_leaves_the_target_model_alone() -> None:
    network = random_network().train()
    assert network.training
    assert network.explanation_module.training
    assert not any(module.training for module in network.target_model.modules())
    before = {k: v.clone() for k, v in network.target_model.state_dict().items()}
    weights = [p for p in network.parameters() if p.requires_grad]
    assert {id(p) for p in weights} == {id(p) for p in network.explanation_module.parameters()}
    optimiser = torch.optim.SGD(weights, lr=0.1)
    batch = images(4)
    start = [w.detach().clone() for w in weights]
    for _ in range(2):
        _, mask = network(batch)
        occluded = network.probability(remove(batch, mask, filled(batch, "black")))
        (occluded.mean() + mask.mean()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(p.grad is None for p in network.target_model.parameters())
    for name, value in network.target_model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(w, s) for w, s in zip(weights, start, strict=True))


def test_gradient_reaches_the_mask_through_the_response() -> None:
    """What training needs: the response pulls on the mask though the classifier is frozen."""
    network = random_network().train()
    batch = images()
    mask = torch.full_like(batch, 0.3, requires_grad=True)
    network.probability(remove(batch, mask, filled(batch, "black"))).sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() > 0


# --- removal ---


def test_one_is_removed_and_zero_is_kept() -> None:
    batch, background = images(), torch.full((2, 1, 96, 96), 0.25)
    assert torch.equal(remove(batch, torch.zeros_like(batch), background), batch)
    assert torch.equal(remove(batch, torch.ones_like(batch), background), background)
    half = remove(batch, torch.full_like(batch, 0.5), background)
    assert torch.allclose(half, (batch + background) / 2)


def test_fills() -> None:
    batch = images()
    assert (filled(batch, "black") == 0).all()
    mean = filled(batch, "mean")
    assert mean.shape == batch.shape
    assert torch.allclose(mean[1], batch[1].mean().expand(1, 96, 96))
    blur = filled(batch, "blur")
    assert blur.shape == batch.shape
    assert blur.std() < batch.std()
    assert torch.allclose(blur.mean(), batch.mean(), atol=0.05)


def test_blur_is_a_gaussian_that_keeps_a_constant() -> None:
    constant = torch.full((1, 1, 32, 32), 0.7)
    assert torch.allclose(blurred(constant, 3.0), constant, atol=1e-5)
    point = torch.zeros(1, 1, 65, 65)
    point[..., 32, 32] = 1
    found = blurred(point, 4.0)[0, 0]
    assert found.sum() == pytest.approx(1, abs=1e-4)
    along = torch.arange(65.0) - 32
    assert (found.sum(dim=0) * along**2).sum() == pytest.approx(16, rel=0.05)
    assert blurred(torch.rand(1, 1, 32, 32), 40.0).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
@torch.inference_mode()
def test_responses_without_and_with_the_segment(fill: Fill) -> None:
    network = random_network()
    batch = images(3)
    segment = torch.zeros_like(batch)
    segment[..., 30:60, 20:50] = 1
    occluded, kept = responses_without_and_with(network, batch, segment, fill)
    background = filled(batch, fill)
    without = torch.where(segment.bool(), background, batch)
    only = torch.where(segment.bool(), batch, background)
    assert torch.allclose(occluded, network.probability(without), atol=1e-5)
    assert torch.allclose(kept, network.probability(only), atol=1e-5)
    assert not torch.allclose(occluded, kept, atol=1e-3)


@torch.inference_mode()
def test_empty_segment_occludes_nothing() -> None:
    network = random_network()
    batch = images()
    empty = torch.zeros_like(batch)
    occluded, kept = responses_without_and_with(network, batch, empty, "black")
    assert torch.allclose(occluded, network.probability(batch), atol=1e-5)
    assert torch.allclose(kept, network.probability(torch.zeros_like(batch)), atol=1e-5)


# --- architecture ---


def architecture(**changes: object) -> Architecture:
    values = {**random_network().architecture.to_manifest(), **changes}
    return Architecture(**values)  # type: ignore[arg-type]


def test_target_must_be_an_output() -> None:
    with pytest.raises(ValueError, match="'mass' is not one of the outputs"):
        architecture(target="mass")


def test_neighbourhood_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neighbourhood"):
        architecture(neighbourhood=0)


@torch.inference_mode()
def test_target_picks_its_own_output() -> None:
    one, other = (
        ExplainedNetwork(architecture(target=t)).eval() for t in ("effusion", "pneumonia")
    )
    other.load_state_dict(one.state_dict())
    batch = images()
    logits = one.logits(batch)
    assert torch.allclose(one.probability(batch), torch.sigmoid(logits[:, 0]), atol=1e-6)
    assert torch.allclose(other.probability(batch), torch.sigmoid(logits[:, 1]), atol=1e-6)
