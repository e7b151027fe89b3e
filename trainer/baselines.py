"""Attributions that the explanation module is compared with, all for the bundle's own target."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nemt_dicom.network import ExplainedNetwork

Maps = NDArray[np.float32]


def grad_cam_plus_plus(network: ExplainedNetwork, images: NDArray[np.float32]) -> Maps:
    """GradCAM++ on the target model's last block: (N, 1, S, S) -> (N, S, S) in [0, 1].

    The same classifier, the same output and the same input as the explanation module has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries it pulls in
        from pytorch_grad_cam import GradCAMPlusPlus  # noqa: PLC0415
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415

    model = network.target_model
    layer = model.get_submodule(model.feature_info[-1]["module"])
    target = ClassifierOutputTarget(network.target_index)
    device = next(network.parameters()).device
    maps = []
    with GradCAMPlusPlus(model=model, target_layers=[layer]) as cam:
        for part in torch.split(torch.from_numpy(images), 16):
            x = network.normalise(part.to(device)).requires_grad_(True)
            maps.append(cam(input_tensor=x, targets=[target] * len(part)))
    return np.concatenate(maps).astype(np.float32)


def mean_of_boxes(boxes: Sequence[NDArray[np.bool_]], count: int) -> Maps:
    """A map that ignores the image: the mean of the training boxes (S, S), `count` times."""
    mean = np.mean(np.stack(boxes), axis=0, dtype=np.float32)
    return np.broadcast_to(mean, (count, *mean.shape))


def random_maps(shape: tuple[int, ...], seed: int) -> Maps:
    """Uniform noise."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
