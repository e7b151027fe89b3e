"""Every attribution method against its library called directly, or against a known answer."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nemt_dicom.model.network import ExplainedNetwork
from tests.conftest import random_network
from trainer.evaluation.code_versions import MAPS
from trainer.evaluation.methods import (
    METHODS,
    mean_of_boxes,
    methods,
    methods_for_representations,
    shuffled_module,
)
from trainer.evaluation.perturbation import maximum_convolution, rise, smooth_pixel_mask
from trainer.evaluation.relax import random_masks, relax, u_relax
from trainer.evaluation.settings import EvaluationSettings

SIDE = 96
FEW = EvaluationSettings(
    rise_masks=60, smooth_mask_steps=5, gradient_steps=3, relax_masks_cpu=20, relax_masks=20
)
"""Few steps for what takes long in earnest."""
KNOWN = methods(FEW)


@pytest.fixture(scope="module")
def network() -> ExplainedNetwork:
    return random_network()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Ten smooth images: more than one pass of `AT_ONCE`."""
    coarse = torch.rand(10, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=SIDE, mode="bicubic").clamp(0, 1).numpy()


def same(maps: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of passes of another size, whatever the scale of a map."""
    assert expected.max() > 0
    assert np.abs(maps - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("key", METHODS)
def test_every_method_maps_every_image_and_repeats_itself(
    key: str, network: ExplainedNetwork, images: np.ndarray
) -> None:
    method = KNOWN[key]
    if key in {"smooth_pixel_mask", "occlusion", "rise"}:
        images = images[:2]  # one image after the other: more show nothing
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    maps = method.maps(network, images)
    assert maps.shape == (len(images), SIDE, SIDE)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert np.array_equal(np.random.get_state()[1], before[0])  # nobody else's numbers are drawn
    assert torch.equal(torch.get_rng_state(), before[1])
    np.random.random()
    torch.rand(1)
    assert np.array_equal(method.maps(network, images), maps)  # whatever was drawn before
    assert method.software.startswith(f"{method.library} " if method.library else "nemt-dicom")


def test_no_weight_is_left_with_a_gradient(network: ExplainedNetwork, images: np.ndarray) -> None:
    for method in KNOWN.values():
        method.maps(network, images[:2])
    assert all(p.grad is None for p in network.parameters())


def test_integrated_gradients_is_captums(network: ExplainedNetwork, images: np.ndarray) -> None:
    """With few steps: with many the quadrature gives the same whatever their number."""
    from captum.attr import IntegratedGradients

    x = torch.from_numpy(images[:3])
    found = IntegratedGradients(lambda images: network.logits(images)[:, 1]).attribute(
        x, baselines=0.0, n_steps=3
    )
    expected = found.sum(dim=1).abs().numpy()
    maps = KNOWN["integrated_gradients"].maps(network, images[:3])
    same(maps, expected)


def test_integrated_gradients_add_up_to_the_logit(
    network: ExplainedNetwork, images: np.ndarray
) -> None:
    """Completeness, of the signed attributions of captum with these settings."""
    from captum.attr import IntegratedGradients

    x = torch.from_numpy(images[:3])
    found = IntegratedGradients(network.logits).attribute(x, baselines=0.0, target=1, n_steps=100)
    with torch.no_grad():
        rise = (network.logits(x) - network.logits(torch.zeros_like(x)))[:, 1]
    assert found.sum(dim=(1, 2, 3)).numpy() == pytest.approx(rise.numpy(), abs=0.05)


def test_gradient_shap_is_captums(network: ExplainedNetwork, images: np.ndarray) -> None:
    from captum.attr import GradientShap

    x = torch.from_numpy(images[:3])
    state = np.random.get_state()
    np.random.seed(0)
    found = GradientShap(lambda images: network.logits(images)[:, 1]).attribute(
        x, baselines=torch.zeros(1, 1, SIDE, SIDE), n_samples=5
    )
    np.random.set_state(state)
    expected = found.sum(dim=1).abs().numpy()
    maps = KNOWN["gradient_shap"].maps(network, images[:3])
    same(maps, expected)


@pytest.mark.parametrize(
    ("key", "library"),
    [("gradcam++", "GradCAMPlusPlus"), ("gradcam", "GradCAM"), ("hirescam", "HiResCAM")],
)
def test_class_activation_maps_are_their_librarys(
    key: str, library: str, network: ExplainedNetwork, images: np.ndarray
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    x = network.normalise(torch.from_numpy(images[:3])).requires_grad_(True)
    layer = network.target_model.blocks[-1]
    method = getattr(pytorch_grad_cam, library)
    with method(model=network.target_model, target_layers=[layer]) as cam:
        expected = cam(input_tensor=x, targets=[ClassifierOutputTarget(1)] * 3)
    maps = KNOWN[key].maps(network, images[:3])
    same(maps, expected)


def test_occlusion_is_captums(network: ExplainedNetwork, images: np.ndarray) -> None:
    from captum.attr import Occlusion

    found = Occlusion(lambda images: network.logits(images)[:, 1]).attribute(
        torch.from_numpy(images[:3]),
        sliding_window_shapes=(1, SIDE // 7, SIDE // 7),
        strides=(1, SIDE // 14, SIDE // 14),
        baselines=0.0,
    )
    expected = found.sum(dim=1).clamp(min=0).detach().numpy()
    maps = KNOWN["occlusion"].maps(network, images[:3])
    assert expected.max() > 0.005
    assert np.abs(maps - expected).max() <= 1e-6  # the rounding of logits, whose falls these are


def test_nemt_is_the_explanation_modules_mask(
    network: ExplainedNetwork, images: np.ndarray
) -> None:
    with torch.no_grad():
        _, masks = network.explain(torch.from_numpy(images[:3]))
    assert KNOWN["nemt"].maps(network, images[:3]) == pytest.approx(masks[:, 0].numpy(), abs=1e-6)


def test_what_ignores_the_image(network: ExplainedNetwork, images: np.ndarray) -> None:
    blob = KNOWN["centred_blob"].maps(network, images)
    assert (blob == blob[:1]).all()
    assert blob[0] == pytest.approx(blob[0, ::-1, ::-1])  # centred
    assert blob[0, SIDE // 2, SIDE // 2] == blob.max()
    assert blob[0, SIDE // 2, 0] == pytest.approx(np.exp(-2), rel=0.05)
    noise = KNOWN["random"].maps(network, images)
    assert not np.array_equal(noise[0], noise[1])
    assert np.array_equal(KNOWN["random"].maps(network, images[1:2])[0], noise[1])
    boxes = np.zeros((2, SIDE, SIDE), bool)
    boxes[0, :10], boxes[1, :20] = True, True
    mean = mean_of_boxes(list(boxes))
    maps = mean.maps(network, images)
    assert maps.shape == (len(images), SIDE, SIDE)
    assert [maps[3, row, 0] for row in (5, 15, 25)] == [1.0, 0.5, 0.0]
    assert "2 images" in mean.settings


PATCH = (slice(40, 56), slice(8, 24))


def of_the_patch(images: torch.Tensor) -> torch.Tensor:
    """An embedding that looks at one patch only, pooled to 4 x 4, and has a constant part."""
    patch = F.adaptive_avg_pool2d(images[..., *PATCH], 4).flatten(1)
    return torch.cat([patch, torch.ones(len(patch), 1)], dim=1)


class OfThePatch(ExplainedNetwork):
    """A network whose log odds are a multiple of the mean of one patch."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        mean = images[..., *PATCH].mean(dim=(1, 2, 3))
        return torch.stack([0 * mean, 8 * mean - 4], dim=1)


@pytest.fixture(scope="module")
def looker() -> OfThePatch:
    network = random_network()
    network.__class__ = OfThePatch
    assert isinstance(network, OfThePatch)
    return network


def in_the_patch(found: np.ndarray) -> bool:
    highest = np.unravel_index(found.argmax(), found.shape)
    return all(edge.start <= i < edge.stop for i, edge in zip(highest, PATCH, strict=True))


def test_rise_finds_the_only_patch_that_matters(looker: OfThePatch, images: np.ndarray) -> None:
    bright = images[:2] * 0.3 + 0.7
    for found in rise(looker, bright, masks=1000):
        assert in_the_patch(found)
        far = found[:, 60:]
        assert found[PATCH].mean() > far.mean() + 5 * far.std()


def test_rise_is_its_mean(looker: OfThePatch, images: np.ndarray) -> None:
    """Equation 6 written out, with all masks at hand; whatever the batch."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.cat([random_masks(20, SIDE, generator) for _ in range(3)])
    p = looker.probability(torch.from_numpy(images[:1]) * masks).double()
    expected = (p.view(-1, 1, 1) * masks[:, 0].double()).mean(dim=0) / 0.5
    found = rise(looker, images[:1], masks=60, seed=3, batch=20)
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_smooth_pixel_mask_keeps_the_patch_and_its_area(
    looker: OfThePatch, images: np.ndarray
) -> None:
    image = np.zeros((1, 1, SIDE, SIDE), np.float32)
    image[..., *PATCH] = 1  # the rest is dark, and its blur has none of the patch's light
    for area in (0.05, 0.1):
        found = smooth_pixel_mask(looker, image, area=area, steps=60)[0]
        assert found.mean() == pytest.approx(area, abs=0.02)
        assert found[PATCH].mean() > 0.8  # what area is left lies anywhere


def test_the_maximum_convolution_is_as_high_as_the_highest_cell() -> None:
    cells = torch.zeros(1, 32 * 32)
    cells[0, 16 * 32 + 8] = 1.0
    found = maximum_convolution(cells)[0, 0]
    assert found.shape == (64, 64)
    highest = divmod(int(found.argmax()), 64)
    assert highest in {(y, x) for y in (32, 33) for x in (16, 17)}
    assert float(found.max()) > 0.9
    assert float(found[:, 48:].max()) < 0.05
    assert maximum_convolution(torch.ones(1, 1024))[0, 0, 32, 32] > 0.9


def test_relax_finds_the_only_patch_that_matters(images: np.ndarray) -> None:
    importance, uncertainty = relax(of_the_patch, images[:3] * 0.5 + 0.5, masks=1000)
    assert importance.shape == uncertainty.shape == (3, SIDE, SIDE)
    for found in importance:
        highest = np.unravel_index(found.argmax(), found.shape)
        assert all(edge.start <= i < edge.stop for i, edge in zip(highest, PATCH, strict=True))
        far = found[:, 60:]
        assert found[PATCH].mean() > far.mean() + 5 * far.std()


def test_relax_is_its_two_means(images: np.ndarray) -> None:
    """The running sums against the two estimators written out, with all masks at hand."""
    importance, uncertainty = relax(of_the_patch, images[:1], masks=60, seed=3, batch=20)
    generator = torch.Generator().manual_seed(3)
    masks = torch.cat([random_masks(20, SIDE, generator) for _ in range(3)])
    x = torch.from_numpy(images[:1])
    similarity = F.cosine_similarity(of_the_patch(x * masks), of_the_patch(x)).double()
    s, m = similarity.view(-1, 1, 1), masks[:, 0].double()
    expected = (s * m).sum(0) / m.sum(0)
    spread = ((s - expected) ** 2 * m).sum(0) / m.sum(0)
    assert importance[0] == pytest.approx(expected.numpy(), abs=1e-6)
    assert uncertainty[0] == pytest.approx(spread.numpy(), abs=1e-6)


def test_u_relax_keeps_the_certain_half(images: np.ndarray) -> None:
    importance, uncertainty = relax(of_the_patch, images[:2], masks=200)
    kept = u_relax(importance, uncertainty)
    for k, r, u in zip(kept, importance, uncertainty, strict=True):
        assert (k > 0).mean() == pytest.approx(0.5, abs=0.01)
        assert (k[u < np.median(u)] == r[u < np.median(u)]).all()
        assert (k[u >= np.median(u)] == 0).all()
    assert (u_relax(importance, uncertainty, gamma=0) == 0).all()


def test_relax_of_what_no_mask_changes_is_one_and_certain(images: np.ndarray) -> None:
    importance, uncertainty = relax(lambda x: torch.ones(len(x), 3), images[:1], masks=30)
    assert importance == pytest.approx(1.0)
    assert uncertainty == pytest.approx(0.0, abs=1e-6)


def test_relax_takes_an_equal_seed_and_any_batch(images: np.ndarray) -> None:
    three = np.repeat(images[:1], 3, axis=1)  # colour images too
    first = relax(lambda x: x.mean(dim=(2, 3)), three, masks=40, seed=1)
    again = relax(lambda x: x.mean(dim=(2, 3)), three, masks=40, seed=1)
    other = relax(lambda x: x.mean(dim=(2, 3)), three, masks=40, seed=2)
    assert np.array_equal(first, again)
    assert first[0].shape == (1, SIDE, SIDE)
    assert not np.array_equal(first[1], other[1])


def test_masks_show_half_of_every_pixel() -> None:
    masks = random_masks(2000, 64, torch.Generator().manual_seed(0))
    assert masks.shape == (2000, 1, 64, 64)
    assert 0 <= float(masks.min()) < float(masks.max()) <= 1
    assert masks.mean(dim=0).numpy() == pytest.approx(0.5, abs=0.05)


def test_settings_decide_how_methods_compute_and_the_report_says_so() -> None:
    """Every setting of a method changes its description, and so the key of its kept maps."""
    defaults = EvaluationSettings()
    for name, key in (
        ("gradient_steps", "integrated_gradients"),
        ("shap_samples", "gradient_shap"),
        ("rise_masks", "rise"),
        ("smooth_mask_steps", "smooth_pixel_mask"),
    ):
        other = defaults.model_copy(update={name: 77})
        assert "77" in methods(other)[key].settings
        assert methods(defaults)[key].settings != methods(other)[key].settings
    small = methods(defaults.model_copy(update={"smooth_mask_area": 0.125}))["smooth_pixel_mask"]
    assert "area 12.5%" in small.settings
    for device, name in (("cpu", "relax_masks_cpu"), ("cuda", "relax_masks")):
        other = methods_for_representations(defaults.model_copy(update={name: 77}), device)
        assert "77 masks" in other["relax"].settings
        assert "77 masks" in other["u_relax"].settings


def test_relax_of_another_network_is_not_the_last_ones(images: np.ndarray) -> None:
    one, other = random_network(), random_network()
    with torch.no_grad():
        for weight in other.target_model.parameters():
            weight.mul_(1.3)
    few = images[:2]
    for key in ("relax", "u_relax"):
        method = methods_for_representations(FEW, "cpu")[key]
        first = method.maps(one, few)
        assert not np.allclose(first, method.maps(other, few))
        assert np.array_equal(first, method.maps(one, few))


def test_the_code_of_every_method_is_part_of_what_is_kept() -> None:
    every = {**KNOWN, **methods_for_representations(FEW, "cpu")}
    every |= {"mean": mean_of_boxes([np.ones((2, 2), bool)]), "shuffled": shuffled_module()}
    functions = [getattr(method.maps, "func", method.maps) for method in every.values()]
    assert {function.__module__ for function in functions} <= {module.__name__ for module in MAPS}
