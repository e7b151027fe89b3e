"""Attributions that the explanation module is compared with, all of the output that it explains.

The same classifier, the same output and the same input as the explanation module has. Images are
(N, C, S, S) float32 in [0, 1] with C = 1 or 3; maps are (N, S, S) float32, 1 or high = evidence.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from captum.attr import GradientShap, IntegratedGradients, Occlusion
from numpy.typing import NDArray
from torch import Tensor

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..inference import soft_masks
from .perturbation import AREA, RISE_MASKS, rise, smooth_pixel_mask
from .perturbation import STEPS as MASK_STEPS
from .relax import MASKS, relax, u_relax

MapFunction = Callable[[ExplainedNetwork, Images], Maps]

NEMT = "nemt"
"""Key of the explanation module among the methods."""
SHUFFLED = "shuffled_module"
"""Key of the explanation module with shuffled weights among the methods."""

STEPS = 50
"""Integrated Gradients: points on the path, captum's default and the paper's time of 0.049 s."""
SAMPLES = 5
"""GradientSHAP: points on the path, captum's and Quantus' default."""
AT_ONCE = 8
"""Images in one pass (GradientSHAP: times `SAMPLES`, and its draws follow it): bounds memory."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Method:
    """An attribution method and what a report has to say of it.

    library: the distribution that computes it, "" for our own code.
    """

    name: str
    library: str
    settings: str
    maps: MapFunction

    def describe(self) -> dict[str, str]:
        """Name, library with its version and settings, for manifest and report."""
        library = f"{self.library} {version(self.library)}" if self.library else "nemt-dicom"
        return {"name": self.name, "library": library, "settings": self.settings}


def explanation_module(network: ExplainedNetwork, images: Images) -> Maps:
    """The soft mask, as it is before any gating."""
    return soft_masks(network, images)[1]


def _class_activation(library: str) -> MapFunction:
    """A map of the target model's last block, in [0, 1], by the class of `grad-cam` so named."""

    def maps(network: ExplainedNetwork, images: Images) -> Maps:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries it pulls in
            import pytorch_grad_cam  # noqa: PLC0415
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

        model = network.target_model
        layer = model.get_submodule(model.feature_info[-1]["module"])
        found = []
        with getattr(pytorch_grad_cam, library)(
            model=model, target_layers=[layer], reshape_transform=partial(_as_map, model)
        ) as cam:
            for part in _batches(network, images, 32):
                x = network.normalise(part).requires_grad_(True)
                targets = [ClassifierOutputTarget(int(i)) for i in network.explained_output(part)]
                found.append(cam(input_tensor=x, targets=targets))
        return np.concatenate(found).astype(np.float32)

    return maps


def _as_map(model: Any, found: Tensor) -> Tensor:
    """What a layer of a timm model gives, as a feature map (B, C, h, w)."""
    if found.ndim == 3:  # tokens (B, n, C), those that stand for no place first
        places = found[:, getattr(model, "num_prefix_tokens", 0) :]
        side = math.isqrt(places.shape[1])
        return places.movedim(-1, 1).reshape(len(found), -1, side, side)
    return found.movedim(-1, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else found


def integrated_gradients(network: ExplainedNetwork, images: Images) -> Maps:
    """Integrated Gradients of the explained logit, from a black image, absolute."""
    method = IntegratedGradients(network.logits)
    found = [
        method.attribute(
            part,
            baselines=torch.zeros_like(part),
            target=network.explained_output(part),
            n_steps=STEPS,
            internal_batch_size=2 * AT_ONCE,
        )
        for part in _batches(network, images)
    ]
    return _absolute_sum(found)


def gradient_shap(network: ExplainedNetwork, images: Images) -> Maps:
    """GradientSHAP of the explained logit, from a black image, absolute."""
    method = GradientShap(network.logits)
    with _seeded(SEED):
        found = [
            method.attribute(
                part,
                baselines=torch.zeros_like(part[:1]),
                target=network.explained_output(part),
                n_samples=SAMPLES,
                stdevs=0.0,
            )
            for part in _batches(network, images)
        ]
    return _absolute_sum(found)


@torch.inference_mode()
def occlusion(network: ExplainedNetwork, images: Images) -> Maps:
    """How far the explained logit falls under a black window, mean over the windows of a pixel."""
    window, stride = _occlusion_window(images.shape[-1])
    method = Occlusion(network.logits)
    found = [
        method.attribute(
            part,
            sliding_window_shapes=(images.shape[1], window, window),
            strides=(images.shape[1], stride, stride),
            baselines=0.0,
            target=network.explained_output(part),
            perturbations_per_eval=max(1, 4 * AT_ONCE // len(part)),
        )
        for part in _batches(network, images)
    ]
    return torch.cat(found).mean(dim=1).clamp(min=0).cpu().numpy().astype(np.float32)


def _occlusion_window(side: int) -> tuple[int, int]:
    return max(2, side // 7), max(1, side // 14)


def random_maps(network: ExplainedNetwork, images: Images) -> Maps:
    """Uniform noise, the same for the same image."""
    seeds = (hashlib.sha256(image.tobytes()).digest()[:8] for image in images)
    drawn = [
        np.random.default_rng(int.from_bytes(seed)).random(images.shape[-2:], dtype=np.float32)
        for seed in seeds
    ]
    return np.stack(drawn)


def centred_blob(network: ExplainedNetwork, images: Images) -> Maps:
    """A Gaussian in the middle: what is to be had by knowing that findings are not at the rim."""
    side = images.shape[-1]
    x = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / (side / 4)
    blob = np.exp(-0.5 * (x[:, None] ** 2 + x**2))
    return np.broadcast_to(blob.astype(np.float32), (len(images), side, side))


def mean_of_boxes(boxes: Sequence[NDArray[np.bool_]]) -> Method:
    """A map that ignores the image: the mean of the training images' boxes (S, S), those of the
    validation split among them.
    """
    mean = np.mean(np.stack(boxes), axis=0, dtype=np.float32)
    return Method(
        name="mean of the training boxes",
        library="",
        settings=f"of {len(boxes)} images, the same map for every image, SHA-256 "
        f"{hashlib.sha256(mean.tobytes()).hexdigest()[:12]}",
        maps=lambda network, images: np.broadcast_to(mean, (len(images), *mean.shape)),
    )


def shuffled_module() -> Method:
    """The explanation module with the values of each of its weights in a random order.

    What the classifier alone brings to a mask that is weighed by its local probability: a module
    that is no better than this one has learnt nothing.
    """
    return Method(
        name="explanation module, shuffled",
        library="",
        settings=f"the values of each weight in a random order, seed {SEED}",
        maps=lambda network, images: soft_masks(_shuffled(network), images)[1],
    )


def _shuffled(network: ExplainedNetwork) -> ExplainedNetwork:
    copy = deepcopy(network)
    generator = torch.Generator().manual_seed(SEED)
    for weight in copy.explanation_module.parameters():
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.data = weight.data.flatten()[order].view_as(weight)
    return copy


def _rise_masks(device: str) -> int:
    return RISE_MASKS if device == "cuda" else RISE_MASKS // 2


_LAST = "last block, of the target's logit"
_PATH = "of the target's logit, black baseline, summed over channels, absolute value"
METHODS: dict[str, Method] = {
    NEMT: Method(
        name="explanation module", library="", settings="soft mask", maps=explanation_module
    ),
    "gradcam++": Method(
        name="GradCAM++",
        library="grad-cam",
        settings=_LAST,
        maps=_class_activation("GradCAMPlusPlus"),
    ),
    "gradcam": Method(
        name="GradCAM", library="grad-cam", settings=_LAST, maps=_class_activation("GradCAM")
    ),
    "hirescam": Method(
        name="HiResCAM", library="grad-cam", settings=_LAST, maps=_class_activation("HiResCAM")
    ),
    "integrated_gradients": Method(
        name="Integrated Gradients",
        library="captum",
        settings=f"{STEPS} steps (Gauss-Legendre), {_PATH}",
        maps=integrated_gradients,
    ),
    "gradient_shap": Method(
        name="GradientSHAP",
        library="captum",
        settings=f"{SAMPLES} samples without noise, {_PATH}",
        maps=gradient_shap,
    ),
    "occlusion": Method(
        name="Occlusion",
        library="captum",
        settings="black window of 1/7 of the side, moved by its half; falls of the target's logit",
        maps=occlusion,
    ),
    "rise": Method(
        name="RISE",
        library="",
        settings=f"{RISE_MASKS} masks of 7 x 7 cells (half as many without a GPU), black, p",
        maps=lambda network, images: rise(
            network, images, masks=_rise_masks(next(network.parameters()).device.type)
        ),
    ),
    "smooth_pixel_mask": Method(
        name="Smooth Pixel Mask",
        library="",
        settings=f"extremal perturbation, area {AREA:.0%}, blurred, {MASK_STEPS} steps of Adam",
        maps=smooth_pixel_mask,
    ),
    "centred_blob": Method(
        name="centred blob",
        library="",
        settings="Gaussian, standard deviation a quarter of the side, ignores the image",
        maps=centred_blob,
    ),
    "random": Method(name="random", library="", settings="uniform noise a pixel", maps=random_maps),
}
"""All methods that need nothing but the network and the images, in the order of the tables."""


RELAX_MASKS = {"cpu": 500, "cuda": MASKS}
"""Without a GPU fewer masks than the authors': the error of a map falls with their square root."""


def for_representations(device: str) -> dict[str, Method]:
    """The methods that explain an embedding.

    U-RELAX of the images that RELAX saw last costs nothing more.
    """
    count = RELAX_MASKS[device]
    newest: list[tuple[ExplainedNetwork, Images, tuple[Maps, Maps]]] = []

    def both(network: ExplainedNetwork, images: Images) -> tuple[Maps, Maps]:
        if not newest or newest[0][0] is not network or newest[0][1] is not images:
            found = relax(network.logits, images, masks=count, device=device)
            newest[:] = [(network, images, found)]
        return newest[0][2]

    settings = f"{count} masks of 7 x 7 cells, black, cosine similarity"
    return {
        NEMT: METHODS[NEMT],
        "relax": Method(
            name="RELAX",
            library="",
            settings=settings,
            maps=lambda network, images: both(network, images)[0],
        ),
        "u_relax": Method(
            name="U-RELAX",
            library="",
            settings=f"{settings}; importance where its uncertainty is below the median",
            maps=lambda network, images: u_relax(*both(network, images)),
        ),
        "centred_blob": METHODS["centred_blob"],
        "random": METHODS["random"],
    }


def _batches(network: ExplainedNetwork, images: Images, size: int = AT_ONCE) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    for part in torch.split(torch.from_numpy(images), size):
        yield part.to(device)


def _absolute_sum(attributions: Sequence[Any]) -> Maps:
    """(B, C, S, S) each -> |sum over channels|, (N, S, S).

    The absolute value is the paper's: of the bundle's maps on RSNA test images, min-max
    normalised, it has a sparseness of 0.59 and a complexity of 10.18, where the paper's table has
    0.590 and 10.165. Signed maps lie around a grey middle (0.02, 10.82), and positive parts are
    sparser than the paper's (0.79, 9.49).
    """
    together = torch.cat([part.detach() for part in attributions]).sum(dim=1).abs()
    return together.cpu().numpy().astype(np.float32)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Captum draws from the global generators; they are left as they were."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
