"""Forward passes of a network over many images: one batching loop, on the network's own device.

Training and evaluation both ask a network for probabilities, masks and falls. They ask here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemt_dicom.model.network import ExplainedNetwork, Fill, filled, remove

from .arrays import Images, Maps, Regions
from .data.examples import Examples
from .metrics import Probability

BATCH = 32
"""Images in one forward pass."""


def device_of(network: ExplainedNetwork) -> torch.device:
    """The device that the network's weights are on."""
    return next(network.parameters()).device


def batches(network: ExplainedNetwork, images: Images, size: int = BATCH) -> Iterator[Tensor]:
    """The images (N, C, S, S) as tensors (B, C, S, S) on the network's device, in order."""
    device = device_of(network)
    for part in torch.split(torch.from_numpy(images), size):
        yield part.to(device)


@torch.inference_mode()
def over(
    network: ExplainedNetwork, images: Images, answer: Callable[[Tensor], Tensor]
) -> NDArray[Any]:
    """What `answer` gives for each batch of images, joined on the CPU: (N, ...)."""
    return torch.cat([answer(part).cpu() for part in batches(network, images)]).numpy()


@torch.inference_mode()
def probabilities(network: ExplainedNetwork, examples: Examples) -> NDArray[np.float32]:
    """Probability of the explained output of every example, (N,) in [0, 1].

    Examples are taken from the disk a batch at a time, so a set may be larger than the memory.
    """
    rows = np.arange(len(examples))
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return np.concatenate(
        [over(network, examples.take(part), network.probability) for part in parts]
    )


@torch.inference_mode()
def soft_masks(network: ExplainedNetwork, images: Images) -> tuple[NDArray[np.float32], Maps]:
    """The answer to each image (N, C, S, S), and its mask before any threshold (N, S, S).

    The answer is the probability (N,) of the explained output, or the embedding (N, D) if the
    network explains a representation. Masks lie in [0, 1]; 1 = evidence.
    """
    pairs = [network.explain(part) for part in batches(network, images)]
    answer = torch.cat([answer for answer, _ in pairs]).cpu().numpy()
    return answer, torch.cat([mask for _, mask in pairs])[:, 0].cpu().numpy()


@torch.inference_mode()
def falls(
    network: ExplainedNetwork,
    images: Images,
    probability: NDArray[np.float32],
    segments: Regions,
    fill: Fill,
) -> NDArray[np.float32]:
    """Fall of p (N,) when the segments (N, S, S) are occluded in the images (N, C, S, S)."""
    if not len(images):
        return probability
    occluded = []
    for start, image in zip(range(0, len(images), BATCH), batches(network, images), strict=True):
        segment = torch.from_numpy(segments[start : start + BATCH, None].astype(np.float32))
        gone = remove(image, segment.to(image.device), filled(image, fill))
        occluded.append(network.probability(gone).cpu().numpy())
    after: NDArray[np.float32] = np.concatenate(occluded)
    return probability - after


def explained_probability(
    network: ExplainedNetwork, images: Images
) -> tuple[Probability | None, NDArray[np.intp] | None]:
    """How the explained output is asked for when pixels of the images are removed.

    The network's answer to the whole image says which output is explained. Returns the function
    to ask, and the index (N,) of the output of each image if the function gives all outputs.
    (None, None) if the network explains a representation, which has no probability.
    """
    if network.explains_representation:
        return None, None
    if network.architecture.explains == "target":
        return network.probability, None
    index = over(network, images, network.explained_output)
    return network.probabilities, index.astype(np.intp)
