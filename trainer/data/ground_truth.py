"""Where the evidence is, as people drew it: for measuring only, never for training.

Neither the classifier nor the explanation module, nor any threshold, ever sees a box or a lesion
mask.
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
SOURCES = ("RSNA", "HAM10000")
"""The data that say where."""


def require_ground_truth(examples: Examples) -> None:
    """Raises `DataError` where ground truth does not fit its image: before a run, not after it."""
    ground_truth(examples)


def ground_truth(examples: Examples) -> tuple[NDArray[np.intp], Regions]:
    """Rows of the positives that have ground truth, and it: (n,), (n, S, S)."""
    found: Mapping[int, Regions] = {
        i: region
        for i, (case, geometry) in enumerate(zip(examples.cases, examples.geometries, strict=True))
        if case.label and (region := read_truth(case, geometry)) is not None
    }
    side = examples.store.shape[-1]
    regions = np.stack(list(found.values())) if found else np.zeros((0, side, side), np.bool_)
    return np.array(list(found), np.intp), regions


def read_truth(case: Case, geometry: Geometry) -> NDArray[np.bool_] | None:
    """Ground truth for evaluation, in the model frame: RSNA's boxes, HAM10000's lesion.

    (S, S) bool: the union of a positive's boxes, or the lesion whatever its class; None for a case
    without. Raises `DataError` where it does not fit the image.
    """
    if case.source == "RSNA":
        source = _boxes_mask(case, geometry)
    elif case.source == "HAM10000":
        source = _lesion_mask(case, geometry)
    else:
        return None
    # to_model repeats the border beyond it: what touches it would go on beside the image
    return None if source is None else (geometry.to_model(source) >= 0.5) & geometry.inside()


@lru_cache(maxsize=4)
def _boxes(table: Path, _modified: int) -> dict[str, list[tuple[float, float, float, float]]]:
    return read_boxes(table)


def _boxes_mask(case: Case, geometry: Geometry) -> NDArray[np.float32] | None:
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
    name = f"{case.path.stem}_segmentation.png"
    places = (case.path.parent.parent / folder / name for folder in HAM_MASKS)
    path = next((place for place in places if place.is_file()), None)
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
