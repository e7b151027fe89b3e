"""The attribution methods that an evaluation knows, built from its settings.

Every method explains the same output of the same classifier as the explanation module.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps
from ..inference import device_of
from .attributions import (
    SEED,
    MapFunction,
    centred_blob,
    class_activation,
    explanation_module,
    gradient_shap,
    integrated_gradients,
    occlusion,
    random_maps,
    shuffled_module_maps,
)
from .perturbation import rise, smooth_pixel_mask
from .relax import relax, u_relax
from .result_store import ResultStore, T, digest
from .settings import NEMT, EvaluationSettings

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, FloatingPointError)
"""Errors by which a method says that it has no map of an image; none of them ends an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """An attribution method, and what a report says of it.

    name: as people read it.
    library: the distribution that computes it, "" for our own code.
    settings: how it is computed.
    maps: images (N, C, S, S) in [0, 1] -> maps (N, S, S), high = evidence.
    """

    name: str
    library: str
    settings: str
    maps: MapFunction

    @property
    def software(self) -> str:
        """The library with its version."""
        return f"{self.library} {version(self.library)}" if self.library else "nemt-dicom"

    def describe(self) -> tuple[str, str, str]:
        """Name, library with version, settings: all that a kept map depends on but the code."""
        return self.name, self.software, self.settings


_LAST = "last block, of the target's logit"
_PATH = "of the target's logit, black baseline, summed over channels, absolute value"


def _own(name: str, settings: str, maps: MapFunction) -> Method:
    return Method(name=name, library="", settings=settings, maps=maps)


def _grad_cam(name: str) -> Method:
    library = name.replace("++", "PlusPlus")
    return Method(name=name, library="grad-cam", settings=_LAST, maps=class_activation(library))


def _captum(name: str, settings: str, maps: MapFunction) -> Method:
    return Method(name=name, library="captum", settings=settings, maps=maps)


def _rise(network: ExplainedNetwork, images: Images, *, masks: int) -> Maps:
    on_gpu = device_of(network).type == "cuda"
    return rise(network, images, masks=masks if on_gpu else masks // 2)


def methods(settings: EvaluationSettings) -> dict[str, Method]:
    """All methods that need nothing but the network and the images, in the order of the tables."""
    return {
        NEMT: _own("explanation module", "soft mask", explanation_module),
        "gradcam++": _grad_cam("GradCAM++"),
        "gradcam": _grad_cam("GradCAM"),
        "hirescam": _grad_cam("HiResCAM"),
        "integrated_gradients": _captum(
            "Integrated Gradients",
            f"{settings.gradient_steps} steps (Gauss-Legendre), {_PATH}",
            partial(integrated_gradients, steps=settings.gradient_steps),
        ),
        "gradient_shap": _captum(
            "GradientSHAP",
            f"{settings.shap_samples} samples without noise, {_PATH}",
            partial(gradient_shap, samples=settings.shap_samples),
        ),
        "occlusion": _captum(
            "Occlusion",
            "black window of 1/7 of the side, moved by its half; falls of the target's logit",
            occlusion,
        ),
        "rise": _own(
            "RISE",
            f"{settings.rise_masks} masks of 7 x 7 cells (half as many without a GPU), black, p",
            partial(_rise, masks=settings.rise_masks),
        ),
        "smooth_pixel_mask": _own(
            "Smooth Pixel Mask",
            f"extremal perturbation, area {100 * settings.smooth_mask_area:g}%, blurred, "
            f"{settings.smooth_mask_steps} steps of Adam",
            partial(
                smooth_pixel_mask,
                area=settings.smooth_mask_area,
                steps=settings.smooth_mask_steps,
            ),
        ),
        "centred_blob": _own(
            "centred blob",
            "Gaussian, standard deviation a quarter of the side, ignores the image",
            centred_blob,
        ),
        "random": _own("random", "uniform noise a pixel", random_maps),
    }


METHODS = tuple(methods(EvaluationSettings()))
"""Keys of the methods for a classifier, in the order of the tables."""
FOR_REPRESENTATIONS = (NEMT, "relax", "u_relax", "centred_blob", "random")
"""Keys of the methods for an embedding."""


def methods_for_representations(settings: EvaluationSettings, device: str) -> dict[str, Method]:
    """The methods that explain an embedding, in the order of the tables."""
    count = settings.relax_masks if device == "cuda" else settings.relax_masks_cpu
    both, text = _Relax(count, device), f"{count} masks of 7 x 7 cells, black, cosine similarity"
    known = methods(settings) | {
        "relax": _own("RELAX", text, lambda network, images: both(network, images)[0]),
        "u_relax": _own(
            "U-RELAX",
            f"{text}; importance where its uncertainty is below the median",
            lambda network, images: u_relax(*both(network, images)),
        ),
    }
    return {key: known[key] for key in FOR_REPRESENTATIONS}


class _Relax:
    """RELAX's importance and uncertainty. The last result is kept: U-RELAX of it costs nothing."""

    def __init__(self, masks: int, device: str) -> None:
        self._masks, self._device = masks, device
        self._newest: tuple[ExplainedNetwork, Images, tuple[Maps, Maps]] | None = None

    def __call__(self, network: ExplainedNetwork, images: Images) -> tuple[Maps, Maps]:
        last = self._newest
        if last is not None and last[0] is network and last[1] is images:
            return last[2]
        maps = relax(network.logits, images, masks=self._masks, device=self._device)
        self._newest = network, images, maps
        return maps


def mean_of_boxes(boxes: Sequence[NDArray[np.bool_]]) -> Method:
    """A map that ignores the image: the mean of the boxes (S, S) of the training images.

    Images of the validation split count as training images.
    """
    mean = np.mean(np.stack(boxes), axis=0, dtype=np.float32)
    return _own(
        "mean of the training boxes",
        f"of {len(boxes)} images, the same map for every image, SHA-256 "
        f"{hashlib.sha256(mean.tobytes()).hexdigest()[:12]}",
        lambda network, images: np.broadcast_to(mean, (len(images), *mean.shape)),
    )


def shuffled_module() -> Method:
    """The explanation module with the values of each of its weights in a random order.

    It shows what the classifier alone brings to a mask that is weighed by its local probability.
    A module that is no better than this one has learnt nothing.
    """
    return _own(
        "explanation module, shuffled",
        f"the values of each weight in a random order, seed {SEED}",
        shuffled_module_maps,
    )


def remember(
    store: ResultStore | None,
    name: str,
    kind: TypeAdapter[T],
    chosen: Mapping[str, Method],
    images: Images,
    further: str,
    compute: Callable[[], T],
) -> T:
    """A result of these methods together on these images, from the store if it is there.

    further: what else the result depends on.
    """
    if store is None:
        return compute()
    code = store.code
    key = (
        name,
        code.maps,
        code.tests,
        str([(k, method.describe()) for k, method in chosen.items()]),
        digest(images),
        further,
    )
    return store.remember(kind, compute, *key)
