"""How far what is read from a file lies from the scene that was stored in it."""

import numpy as np
from pydicom import Dataset

from nemt_dicom.config import InputSettings
from nemt_dicom.intake.radiograph import UPRIGHT, Radiograph
from nemt_dicom.model.preprocess import Preprocessing
from tests.intake import scene
from tests.intake.scene import GREY_LEVEL, Recipe, turned, write

PREPROCESSING = Preprocessing(size=64, low_percentile=0, high_percentile=100)


def read(dataset: Dataset) -> Radiograph:
    return Radiograph.from_dataset(dataset, InputSettings())


def tensor(radiograph: Radiograph) -> np.ndarray:
    return PREPROCESSING(radiograph)[0]


def expected_tensor() -> np.ndarray:
    """The tensor of the scene itself, without the rounding of a file."""
    pixels = scene.scene().astype(np.float32)
    return tensor(Radiograph(pixels=pixels, valid=None, orientation=UPRIGHT, source_kind="dicom"))


def off(recipe: Recipe) -> float:
    """Largest difference between the tensors of the file and of the scene, in 8-bit grey levels."""
    return float(np.abs(tensor(read(write(recipe))) - expected_tensor()).max()) / GREY_LEVEL


def check(recipe: Recipe, levels: float = 1.0) -> None:
    """The tensor and every displayed pixel differ from the scene by at most `levels`."""
    radiograph = read(write(recipe))
    shown = turned(recipe.shown, recipe.orientation)
    assert radiograph.pixels.dtype == np.float32
    assert np.abs(radiograph.pixels - shown).max() <= levels * GREY_LEVEL
    assert off(recipe) <= levels
