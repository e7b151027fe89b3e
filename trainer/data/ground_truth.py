"""Ground truth: boxes and lesion masks that people drew. For evaluation only, never for training.

The classifier, the explanation module and the thresholds never see a box or a lesion mask.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nemt_dicom.errors import DataError
from nemt_dicom.model.preprocess import Geometry

from ..arrays import Regions
from .cases import Case
from .examples import Examples
from .layouts import RSNA_LABELS, read_boxes

HAM_MASKS = ("masks", "HAM10000_segmentations_lesion_tschandl")
"""Folders that may hold the lesion masks of HAM10000."""
SOURCES = ("RSNA", "HAM10000")
"""Sources with ground truth."""


def require_ground_truth(examples: Examples) -> None:
    """Raises `DataError` if ground truth does not fit its image. Call it before a long run."""
    ground_truth(examples)


def ground_truth(examples: Examples) -> tuple[NDArray[np.intp], Regions]:
    """The ground truth of all positives that have it.

    Returns (n,) intp, the numbers of these examples, and (n, S, S) bool, True inside the ground
    truth, in the model's frame.
    """
    truths: Mapping[int, Regions] = {
        i: region
        for i, (case, geometry) in enumerate(zip(examples.cases, examples.geometries, strict=True))
        if case.label and (region := read_truth(case, geometry)) is not None
    }
    side = examples.store.shape[-1]
    regions = np.stack(list(truths.values())) if truths else np.zeros((0, side, side), np.bool_)
    return np.array(list(truths), np.intp), regions


def read_truth(case: Case, geometry: Geometry) -> NDArray[np.bool_] | None:
    """The ground truth of one case: (S, S) bool in the model's frame; None if it has none.

    RSNA: the union of the boxes; only positives have boxes. HAM10000: the lesion, for every class.
    A lesion mask without a lesion is no ground truth, nor is a box that covers no pixel of the
    model's frame: a map cannot be inside nothing.

    Raises `DataError` if the ground truth does not fit the image.
    """
    if case.source == "RSNA":
        source = _boxes_mask(case, geometry)
    elif case.source == "HAM10000":
        source = _lesion_mask(case, geometry)
    else:
        return None
    # `to_model` repeats the border pixels beside the image. There is no ground truth.
    if source is None:
        return None
    region = (geometry.to_model(source) >= 0.5) & geometry.inside()
    return region if region.any() else None


@lru_cache(maxsize=4)
def _boxes(table: Path, _modified: int) -> dict[str, list[tuple[float, float, float, float]]]:
    """The boxes of a table, read again only if its time of modification changes."""
    return read_boxes(table)


def _boxes_mask(case: Case, geometry: Geometry) -> NDArray[np.float32] | None:
    """(rows, columns) float32 in the source's frame: 1 inside a box, otherwise 0."""
    table = case.path.parent.parent / RSNA_LABELS
    boxes = _boxes(table, table.stat().st_mtime_ns).get(case.path.stem, [])
    if not boxes:
        return None
    inside = np.zeros((geometry.rows, geometry.columns), np.float32)
    for x, y, right, bottom in boxes:
        if not (0 <= x < right <= geometry.columns and 0 <= y < bottom <= geometry.rows):
            raise DataError(f"{case.path.name}: a box lies outside the image")
        inside[round(y) : round(bottom), round(x) : round(right)] = 1.0
    return inside


def _lesion_mask(case: Case, geometry: Geometry) -> NDArray[np.float32] | None:
    """(rows, columns) float32 in the source's frame: 1 inside the lesion, otherwise 0."""
    name = f"{case.path.stem}_segmentation.png"
    candidates = (case.path.parent.parent / folder / name for folder in HAM_MASKS)
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            mask = np.asarray(image.convert("L")) > 127
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as a mask: {error}") from error
    if mask.shape != (geometry.rows, geometry.columns):
        raise DataError(
            f"{path}: the mask is {mask.shape[1]} x {mask.shape[0]}, its image "
            f"{geometry.columns} x {geometry.rows}"
        )
    return mask.astype(np.float32)
