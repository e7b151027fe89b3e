"""Does a mask hold still if nothing changed, and is it silent if there is nothing to say?"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nemt_dicom.model.evaluation import Answers, Figure, Stability
from nemt_dicom.model.manifest import Manifest
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Maps, Regions
from ..inference import falls, soft_masks
from ..metrics import min_max, overlap, relevance_mass, relevance_rank
from ..progress import Progress
from ..statistics import Patients, average, figure
from .methods import FAILURES, Method
from .settings import NEMT

NOISE = 0.02
"""Standard deviation of the noise that is added to grey values in [0, 1]."""
WINDOW = 0.9
"""Width of the narrower window, as a share of the image's own."""
QUALITY = 75
"""Quality of the JPEG compression."""
TILE = 32
"""Side in pixels of the tiles that a scrambled image is made of."""
SEED = 0


def _noise(images: Images) -> Images:
    noise = np.random.default_rng(SEED).normal(0, NOISE, images.shape).astype(np.float32)
    noisy: Images = np.clip(images + noise, 0, 1)
    return noisy


def _shift(images: Images) -> Images:
    moved: Images = np.roll(images, (1, 1), axis=(-2, -1))
    moved[..., 0, :], moved[..., :, 0] = moved[..., 1, :], moved[..., :, 1]
    return moved


def _window(images: Images) -> Images:
    narrower: Images = np.clip((images - 0.5) / WINDOW + 0.5, 0, 1).astype(np.float32)
    return narrower


def _recompress(images: Images) -> Images:
    return np.stack([_jpeg(image) for image in images])


def _jpeg(image: NDArray[np.float32]) -> NDArray[np.float32]:
    stored = np.rint(image * 255).astype(np.uint8)
    picture = Image.fromarray(stored[0] if len(stored) == 1 else stored.transpose(1, 2, 0))
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    read = np.asarray(Image.open(file), np.float32) / np.float32(255)
    return read[None] if read.ndim == 2 else read.transpose(2, 0, 1)


CHANGES: dict[str, Callable[[Images], Images]] = {
    f"noise of {NOISE:g}": _noise,
    "moved by a pixel": _shift,
    f"window of {WINDOW:.0%}": _window,
    f"JPEG of quality {QUALITY}": _recompress,
}
"""Changes that should change no mask. Images (N, C, S, S) in [0, 1] in and out."""


def stability(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    truth: Regions | None,
    threshold: float,
    patients: Patients,
    progress: Progress,
) -> dict[str, dict[str, Stability]]:
    """By method and change: overlap (IoU) of the segments before and after, and how far mass and
    rank move.

    images: (N, C, S, S) in [0, 1]. truth: (N, S, S); None if the data have no ground truth.
    threshold: makes a map a segment. A method that fails on a changed image, or whose map of it is
    not finite, is left out. If the explanation module fails, its error is raised.
    """
    progress.stage("stability", len(CHANGES) * len(methods))
    results: dict[str, dict[str, Stability]] = {}
    for key, method in methods.items():
        failures = () if key == NEMT else FAILURES  # a failure of ours is a fault
        with suppress(*failures):
            before = _finite_maps(method, network, images)
            changes: dict[str, Stability] = {}
            for name, change in CHANGES.items():
                after = _finite_maps(method, network, change(images))
                if change is _shift:
                    after = np.roll(after, (-1, -1), axis=(-2, -1))
                segments = (_segments(key, maps, threshold) for maps in (before, after))
                changes[name] = Stability(
                    iou=figure(average(overlap(*segments)), patients),
                    **({} if truth is None else _moved(before, after, truth, patients)),
                )
                progress.step(f"{method.name}, {name}")
            results[key] = changes
    return results


def _finite_maps(method: Method, network: ExplainedNetwork, images: Images) -> Maps:
    maps = method.maps(network, images)
    if not np.isfinite(maps).all():
        raise FloatingPointError(f"{method.name}: a map is not finite")
    return maps


def _segments(key: str, maps: Maps, threshold: float) -> list[NDArray[np.bool_]]:
    return [(m if key == NEMT else min_max(m)) >= threshold for m in maps]


def _moved(before: Maps, after: Maps, truth: Regions, patients: Patients) -> dict[str, Figure]:
    figures = {}
    for name, score in (("relevance_mass", relevance_mass), ("relevance_rank", relevance_rank)):
        first, second = (np.diag(score(list(maps), list(truth))) for maps in (before, after))
        figures[name] = figure(average(np.abs(second - first)), patients)
    return figures


def scrambled(images: Images) -> Images:
    """The tiles of each image (N, C, S, S) in a random order: the same grey values, no chest."""
    generator = np.random.default_rng(SEED)
    count, channels, side = images.shape[:3]
    n = side // TILE
    tiles = images[..., : n * TILE, : n * TILE].reshape(count, channels, n, TILE, n, TILE)
    tiles = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(count, n * n, channels, TILE, TILE)
    mixed = np.stack([image[generator.permutation(n * n)] for image in tiles])
    whole = mixed.reshape(count, n, n, channels, TILE, TILE).transpose(0, 3, 1, 4, 2, 5)
    rest = side - n * TILE
    joined = whole.reshape(count, channels, n * TILE, n * TILE)
    return np.pad(joined, ((0, 0), (0, 0), (0, rest), (0, rest)), mode="edge").astype(np.float32)


@torch.inference_mode()
def answers(
    network: ExplainedNetwork, manifest: Manifest, images: Images, patients: Patients
) -> Answers:
    """What a bundle answers to images (N, C, S, S): p, area of the mask, what would be drawn.

    A segment counts as drawn by the three thresholds of the bundle, in the model's frame. A bundle
    that explains no fixed target has only an area.
    """
    probability, masks = soft_masks(network, images)
    area = figure(average(masks.mean(axis=(1, 2))), patients)
    if network.architecture.explains != "target":
        return Answers(area=area)
    segments = masks >= manifest.mask_threshold
    rows = np.flatnonzero(segments.any(axis=(1, 2)))
    fall = np.full(len(images), np.nan)
    if len(rows):
        fall[rows] = falls(network, images[rows], probability[rows], segments[rows], manifest.fill)
    drawn = (probability >= manifest.decision_threshold) & (fall > manifest.evidence_margin)
    return Answers(
        area=area,
        probability=figure(average(probability), patients),
        drawn=figure(average(drawn), patients),
        fall=figure(average(fall[rows]), patients.take(rows)) if len(rows) else None,
    )
