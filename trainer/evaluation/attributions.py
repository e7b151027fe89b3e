"""Attribution maps of the output that the explanation module explains, by their libraries.

The same classifier, output and input as the explanation module has. Images are (N, C, S, S) float32
in [0, 1] with C = 1 or 3; maps are (N, S, S) float32, high = evidence. Class activation maps come
from `grad-cam`; Integrated Gradients, GradientSHAP and Occlusion from `captum`.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from captum.attr import GradientShap, IntegratedGradients, Occlusion
from torch import Tensor

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..inference import batches, soft_masks

MapFunction = Callable[[ExplainedNetwork, Images], Maps]

AT_ONCE = 8
"""Images in one pass (GradientSHAP: times its samples, and its draws follow it): bounds memory."""
SEED = 0


def explanation_module(network: ExplainedNetwork, images: Images) -> Maps:
    """The soft mask, before any threshold."""
    return soft_masks(network, images)[1]


def class_activation(library: str) -> MapFunction:
    """A map of the target model's last block, in [0, 1]. library: the class of `grad-cam`."""

    def maps(network: ExplainedNetwork, images: Images) -> Maps:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from the libraries that it imports
            import pytorch_grad_cam  # noqa: PLC0415
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

        model = network.target_model
        layer = model.get_submodule(model.feature_info[-1]["module"])
        parts = []
        with getattr(pytorch_grad_cam, library)(
            model=model, target_layers=[layer], reshape_transform=partial(_as_map, model)
        ) as cam:
            for part in batches(network, images):
                x = network.normalise(part).requires_grad_(True)
                targets = [ClassifierOutputTarget(int(i)) for i in network.explained_output(part)]
                parts.append(cam(input_tensor=x, targets=targets))
        return np.concatenate(parts).astype(np.float32)

    return maps


def _as_map(model: Any, output: Tensor) -> Tensor:
    """The output of a layer of a timm model, as a feature map (B, C, h, w)."""
    if output.ndim == 3:  # tokens (B, n, C); tokens that stand for no place come first
        places = output[:, getattr(model, "num_prefix_tokens", 0) :]
        side = math.isqrt(places.shape[1])
        return places.movedim(-1, 1).reshape(len(output), -1, side, side)
    return output.movedim(-1, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else output


def integrated_gradients(network: ExplainedNetwork, images: Images, *, steps: int) -> Maps:
    """Integrated Gradients of the explained logit, from a black image, absolute.

    M. Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017; `steps` points.
    """
    method = IntegratedGradients(network.logits)
    parts = [
        method.attribute(
            part,
            baselines=torch.zeros_like(part),
            target=network.explained_output(part),
            n_steps=steps,
            internal_batch_size=2 * AT_ONCE,
        )
        for part in batches(network, images, AT_ONCE)
    ]
    return _absolute_sum(parts)


def gradient_shap(network: ExplainedNetwork, images: Images, *, samples: int) -> Maps:
    """GradientSHAP of the explained logit, from a black image, absolute.

    S. Lundberg, S. Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017.
    """
    method = GradientShap(network.logits)
    with _seeded(SEED):
        parts = [
            method.attribute(
                part,
                baselines=torch.zeros_like(part[:1]),
                target=network.explained_output(part),
                n_samples=samples,
                stdevs=0.0,
            )
            for part in batches(network, images, AT_ONCE)
        ]
    return _absolute_sum(parts)


@torch.inference_mode()
def occlusion(network: ExplainedNetwork, images: Images) -> Maps:
    """How far the explained logit falls under a black window, mean over the windows of a pixel.

    M. Zeiler, R. Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
    """
    window, stride = _occlusion_window(images.shape[-1])
    method = Occlusion(network.logits)
    parts = [
        method.attribute(
            part,
            sliding_window_shapes=(images.shape[1], window, window),
            strides=(images.shape[1], stride, stride),
            baselines=0.0,
            target=network.explained_output(part),
            perturbations_per_eval=max(1, 4 * AT_ONCE // len(part)),
        )
        for part in batches(network, images, AT_ONCE)
    ]
    return torch.cat(parts).mean(dim=1).clamp(min=0).cpu().numpy().astype(np.float32)


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
    """A Gaussian in the middle: the score of knowing only that findings are not at the rim."""
    side = images.shape[-1]
    x = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / (side / 4)
    blob = np.exp(-0.5 * (x[:, None] ** 2 + x**2))
    return np.broadcast_to(blob.astype(np.float32), (len(images), side, side))


def shuffled_module_maps(network: ExplainedNetwork, images: Images) -> Maps:
    """The soft mask of the explanation module with the values of each weight in a random order."""
    copy = deepcopy(network)
    generator = torch.Generator().manual_seed(SEED)
    for weight in copy.explanation_module.parameters():
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.data = weight.data.flatten()[order].view_as(weight)
    return soft_masks(copy, images)[1]


def _absolute_sum(attributions: Sequence[Any]) -> Maps:
    """(B, C, S, S) each -> |sum over channels|, (N, S, S).

    The paper takes the absolute value, too: maps of the shipped bundle on RSNA test images, min-max
    normalised, have a sparseness of 0.59 and a complexity of 10.18; the paper's table has 0.590 and
    10.165. Signed maps would have 0.02 and 10.82, and positive parts alone 0.79 and 9.49.
    """
    together = torch.cat([part.detach() for part in attributions]).sum(dim=1).abs()
    return together.cpu().numpy().astype(np.float32)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Captum draws from the global generators. Afterwards they are as they were before."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
