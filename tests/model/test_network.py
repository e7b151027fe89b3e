"""The network: smoothing, removal, one encoder pass, a target model that never changes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nemt_dicom.model.decoders import NeighbourhoodAveraging, Norm, UNetDecoder
from nemt_dicom.model.network import (
    Architecture,
    ExplainedNetwork,
    Fill,
    blurred,
    filled,
    remove,
    responses_without_and_with,
)
from tests.conftest import random_network
from trainer.training.augment import smoothing_kernels
from trainer.training.draws import Draws

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
    found = NeighbourhoodAveraging(side)(mask)
    for i in range(2):
        assert np.allclose(found[i, 0], naive_average(mask[i, 0].numpy(), side), atol=1e-5)


def kernels(count: int, side: int, epoch: int = 1) -> torch.Tensor | None:
    """The trainer's random kernels of `count` examples in one epoch."""
    draws = Draws((1, "explanation module", epoch), np.arange(count))
    return smoothing_kernels(draws, side, torch.device("cpu"))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("training", [True, False])
def test_constant_stays_constant(side: int, training: bool) -> None:
    smoothing = NeighbourhoodAveraging(side)
    for value in (0.0, 0.3, 1.0):
        mask = torch.full((3, 1, 48, 48), value)
        found = smoothing(mask, kernels(3, side) if training else None)
        assert found.shape == mask.shape
        assert torch.allclose(found, torch.full_like(found, value), atol=1e-5)


@pytest.mark.parametrize("side", [5, 20, 21])
def test_training_kernels_are_positive_sum_to_one_and_differ(side: int) -> None:
    """A single bright pixel shows the kernel itself."""
    mask = torch.zeros(4, 1, 64, 64)
    mask[:, :, 32, 32] = 1
    shown = NeighbourhoodAveraging(side)(mask, kernels(4, side))
    assert (shown >= 0).all()
    assert torch.allclose(shown.sum(dim=(-2, -1)), torch.ones(4, 1), atol=1e-5)
    assert ((shown > 0).sum(dim=(-2, -1)) == side * side).all()
    for i in range(3):
        assert not torch.allclose(shown[i], shown[i + 1])


@pytest.mark.parametrize("side", [4, 5])
def test_every_mask_meets_its_own_kernel(side: int) -> None:
    mask, own = torch.rand(3, 1, 12, 9), kernels(3, side)
    assert own is not None
    found = NeighbourhoodAveraging(side)(mask, own)
    before, after = side // 2, side - 1 - side // 2
    for i in range(3):
        padded = np.pad(mask[i, 0].numpy(), ((before, after), (before, after)), mode="edge")
        for row, column in np.ndindex(12, 9):
            window = padded[row : row + side, column : column + side]
            expected = float((window * own[i].numpy()).sum())
            assert float(found[i, 0, row, column]) == pytest.approx(expected, abs=1e-5)


def test_training_gives_another_kernel_each_epoch() -> None:
    smoothing = NeighbourhoodAveraging(21)
    mask = torch.rand(1, 1, 64, 64)
    once, again, later = (smoothing(mask, kernels(1, 21, epoch)) for epoch in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, later)


def test_expectation_of_training_is_evaluation() -> None:
    smoothing = NeighbourhoodAveraging(21)
    mask = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    each = smoothing(mask.expand(400, -1, -1, -1), kernels(400, 21))
    many, one = each.mean(dim=0), smoothing(mask)[0]
    single = (each[0] - one).abs().max()
    assert (many - one).abs().max() < 0.003
    assert (many - one).abs().max() < single / 3


@pytest.mark.parametrize("training", [True, False])
def test_evidence_does_not_come_out_at_the_other_side(training: bool) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :3, :] = 1
    own = kernels(1, 21) if training else None
    found = NeighbourhoodAveraging(21)(mask, own)
    assert found[..., :8, :].min() > 0
    assert (found[..., 20:, :] == 0).all()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 0, 0] = 1
    found = NeighbourhoodAveraging(21)(mask, own)
    assert (found[..., :, 20:] == 0).all()


def test_smoothing_passes_gradients() -> None:
    mask = torch.rand(2, 1, 48, 48, requires_grad=True)
    NeighbourhoodAveraging(21)(mask, kernels(2, 21)).sum().backward()
    assert mask.grad is not None
    assert mask.grad.sum() == pytest.approx(2 * 48 * 48, rel=1e-3)


# --- one encoder pass ---

BACKBONES = ["test_efficientnet", "test_resnet", "test_convnext", "resnet10t", "efficientnet_lite0"]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_one_pass_gives_the_classifiers_own_logits(backbone: str) -> None:
    network = random_network(backbone)
    batch = images()
    logits, mask, _ = network(batch)
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
        _, mask, _ = network(batch)
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


@pytest.mark.parametrize("side", [224, 320])
def test_a_wide_blur_is_the_same_though_it_averages_down_first(side: int) -> None:
    sigma = 10 * side / 224
    batch, reach = images(2, side), int(3 * sigma + 0.5)
    x = torch.arange(-reach, reach + 1.0)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(batch, (reach,) * 4, mode="replicate")
    exact = F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    assert (blurred(batch, sigma) - exact).abs().max() < 0.02
    colours = torch.cat([batch, 1 - batch, batch / 2], dim=1)
    found = blurred(colours, sigma)
    assert found.shape == colours.shape
    for channel in range(3):  # none leaks into another
        alone = blurred(colours[:, channel : channel + 1], sigma)
        assert torch.allclose(found[:, channel : channel + 1], alone, atol=1e-6)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_width": 12}, "multiple of 8"),
        ({"gamma": 0.0}, "gamma"),
        ({"full_from": 0.0}, "no height"),
        ({"activation": "softmax", "outputs": ("pneumonia",)}, "at least two"),
        ({"explains": "representation"}, "no other target"),
        ({"explains": "representation", "follows": True}, "no log odds"),
        (
            {"explains": "representation", "outputs": (), "target": "representation"},
            "no other target",
        ),
    ],
)
def test_architectures_that_contradict_themselves(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(**changes)


def softmax(explains: str = "target") -> ExplainedNetwork:
    """Three classes that exclude each other; "b" is the target."""
    network = ExplainedNetwork(
        architecture(outputs=("a", "b", "c"), target="b", activation="softmax", explains=explains)
    )
    head = network.target_model.get_classifier()
    torch.nn.init.normal_(head.weight, std=0.4, generator=torch.Generator().manual_seed(4))
    return network


@torch.inference_mode()
def test_log_odds_of_a_class_are_those_of_its_softmax_probability() -> None:
    network = softmax()
    logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5], [-30.0, 60.0, 1.0]])
    p = torch.softmax(logits.double(), dim=1)
    for k in range(3):
        found = network.log_odds(logits, torch.full((3,), k)).double()
        assert torch.allclose(torch.sigmoid(found), p[:, k], atol=1e-6)
        assert torch.allclose(found[:2], (p[:, k].log() - (-p[:, k]).log1p())[:2], atol=1e-5)
    assert network.log_odds(logits)[2] == pytest.approx(59, abs=1e-3)  # no overflow to infinity
    batch = images(3)
    expected = torch.softmax(network.logits(batch), dim=1)[:, 1]
    assert torch.allclose(network.probability(batch), expected, atol=1e-6)
    assert torch.allclose(network.explain(batch)[0], expected, atol=1e-5)


@torch.inference_mode()
def test_the_predicted_output_is_each_images_own() -> None:
    network = softmax("predicted")
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert network.explained_index(logits).tolist() == [0, 2]
    batch = images(8)
    p = torch.softmax(network.logits(batch), dim=1)
    assert torch.allclose(network.probability(batch), p.max(dim=1).values, atol=1e-6)
    sigmoid = ExplainedNetwork(architecture(explains="predicted"))
    assert sigmoid.log_odds(logits[:, 1:]).tolist() == [1.0, 2.0]


@torch.inference_mode()
def test_a_representation_has_an_embedding_and_no_probability() -> None:
    changes = {"outputs": (), "target": "representation", "activation": "none"}
    pooled = ExplainedNetwork(architecture(explains="representation", **changes))
    batch = images()
    embedding, mask = pooled.explain(batch)
    assert embedding.shape == (2, pooled.target_model.num_features)
    assert mask.shape == batch.shape
    with pytest.raises(ValueError, match="no probability"):
        pooled.probability(batch)
    projected = ExplainedNetwork(architecture(explains="representation", embedding=5, **changes))
    assert projected.explain(batch)[0].shape == (2, 5)


# --- decoders ---


def decoder(norm: Norm = "batch", backbone: str = "test_resnet") -> ExplainedNetwork:
    return ExplainedNetwork(architecture(decoder="unet", decoder_norm=norm, backbone=backbone))


@torch.inference_mode()
def test_the_papers_decoder_on_resnet50_has_nine_million_parameters() -> None:
    module = decoder(backbone="resnet50").explanation_module
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(9.0e6, abs=0.05e6)
    sides = [32, 16, 8, 4, 2]
    widths = [64, 256, 512, 1024, 2048]
    features = [torch.rand(1, w, s, s) for w, s in zip(widths, sides, strict=True)]
    assert module.eval()(torch.rand(1, 3, 64, 64), features).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("name", ["light", "unet"])
def test_group_norm_knows_no_other_image_of_the_batch(name: str) -> None:
    batch = images(4)
    for norm, same in (("group", True), ("batch", False)):
        network = ExplainedNetwork(architecture(decoder=name, decoder_norm=norm)).train()
        with torch.no_grad():
            together, alone = network(batch)[1], network(batch[:2])[1]
        assert torch.allclose(together[:2], alone, atol=1e-5) is same
        kinds = {type(m).__name__ for m in network.explanation_module.modules()}
        assert {"batch": "BatchNorm2d", "group": "GroupNorm"}[norm] in kinds
        assert {"batch": "GroupNorm", "group": "BatchNorm2d"}[norm] not in kinds


def test_the_unet_sees_the_image_itself() -> None:
    """Its finest input is the image: two that share all features get two masks."""
    module = decoder().explanation_module.eval()
    _, features = decoder().target_model.forward_intermediates(images().expand(-1, 3, -1, -1))
    first, second = (module(torch.rand(2, 3, 96, 96), features) for _ in range(2))
    assert first.shape == (2, 1, 96, 96)
    assert not torch.allclose(first, second, atol=1e-6)


def test_a_unet_takes_five_stages_at_most() -> None:
    with pytest.raises(ValueError, match="5 stages at most"):
        UNetDecoder([8] * 6, "batch", follows=False)


# --- the mask follows the prediction ---


@torch.inference_mode()
def test_local_log_odds_average_to_the_logit() -> None:
    """The head is linear and the pooling an average: what a class activation map rests on."""
    network = random_network("test_resnet")
    batch = images(3)
    last, _ = network.target_model.forward_intermediates(network.normalise(batch))
    logits = network.target_model.forward_head(last)
    local = network.local_log_odds(last, logits)
    assert local.shape == (3, 1, *last.shape[-2:])
    assert local.std() > 0
    assert torch.allclose(local.mean(dim=(-3, -2, -1)), logits[:, 1], atol=1e-4)


@torch.inference_mode()
def test_a_head_that_is_not_linear_on_an_average_has_one_value() -> None:
    network = random_network("test_convnext")  # a norm lies between
    batch = images(3)
    last, _ = network.target_model.forward_intermediates(network.normalise(batch))
    logits = network.target_model.forward_head(last)
    local = network.local_log_odds(last, logits)
    assert torch.allclose(local, network.log_odds(logits).view(-1, 1, 1, 1), atol=1e-6)


@torch.inference_mode()
def test_the_mask_rises_with_the_log_odds_and_is_weighed_by_the_local_probability() -> None:
    plain = random_network("test_resnet", neighbourhood=1)
    network = ExplainedNetwork(architecture(backbone="test_resnet", neighbourhood=1, follows=True))
    network.load_state_dict(plain.state_dict() | {"explanation_module.gain": torch.tensor(0.0)})
    batch = images(3)
    assert torch.allclose(network(batch)[1], plain(batch)[1], atol=1e-6)
    network.explanation_module.gain.fill_(0.7)
    log_odds = network.log_odds(network.logits(batch)).view(-1, 1, 1, 1)
    trained = torch.sigmoid(torch.logit(plain(batch)[1]) + 0.7 * log_odds)
    assert torch.allclose(network(batch)[1], trained, atol=1e-4)
    last, _ = network.target_model.forward_intermediates(network.normalise(batch))
    local = network.local_log_odds(last, network.target_model.forward_head(last))
    finer = F.interpolate(local, size=batch.shape[-2:], mode="bilinear")
    assert torch.allclose(network.explain(batch)[1], trained * torch.sigmoid(finer), atol=1e-4)
    assert not torch.allclose(network.explain(batch)[1], trained, atol=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("odds", [-3.0, 0.5, 4.0])
def test_every_image_is_served_one_shape_as_high_as_the_square_of_its_odds(odds: float) -> None:
    given = {"backbone": "test_resnet", "follows": True, "gamma": 0.5}
    network = ExplainedNetwork(architecture(**given, full_from=1.0))
    network.load_state_dict(random_network("test_resnet").state_dict(), strict=False)
    network.explanation_module.gain.fill_(0.7)
    as_trained = ExplainedNetwork(architecture(**given))
    as_trained.load_state_dict(network.state_dict())
    image = images(1)

    def served(of: ExplainedNetwork, log_odds: float) -> torch.Tensor:
        bias = of.target_model.get_classifier().bias
        bias[of.target_index] += log_odds - float(of.log_odds(of.logits(image)))
        return of.explain(image)[1]

    shape = served(as_trained, 1.0)
    height = math.exp(2 * min(odds - 1, 0))
    assert torch.allclose(served(network, odds), shape * height, rtol=1e-3, atol=1e-7)
    served(as_trained, odds)
    trained = network(image).weighed, as_trained(image).weighed
    assert torch.allclose(*trained, rtol=1e-4, atol=1e-7)  # training knows neither


@torch.inference_mode()
@pytest.mark.parametrize("follows", [False, True])
def test_what_is_served_is_the_power_of_what_is_trained(follows: bool) -> None:
    given = {"backbone": "test_resnet", "follows": follows}
    plain = ExplainedNetwork(architecture(**given))
    network = ExplainedNetwork(architecture(**given, gamma=0.5))
    network.load_state_dict(plain.state_dict())
    batch = images(3)
    assert torch.equal(network(batch).weighed, plain(batch).weighed)
    assert torch.allclose(network.explain(batch)[1] ** 2, plain.explain(batch)[1], atol=1e-6)


def test_the_gain_is_trained_and_the_head_is_not() -> None:
    network = ExplainedNetwork(architecture(follows=True)).train()
    torch.nn.init.normal_(network.target_model.get_classifier().weight, std=0.3)
    network(images())[1].mean().backward()
    gain = network.explanation_module.gain
    assert gain is not None
    assert gain.grad is not None
    assert float(gain.grad.abs()) > 0
    assert all(p.grad is None for p in network.target_model.parameters())
