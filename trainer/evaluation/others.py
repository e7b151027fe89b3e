"""Images that are not of a bundle's kind: what it says of them ought to be nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from nemt_dicom.config import InputSettings
from nemt_dicom.errors import DataError, Refused
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle

from ..arrays import Images
from ..data.cases import UNREADABLE
from ..progress import Progress

MOST = 50
"""Images of a folder that are looked at, chosen by a seed."""
SEED = 0
PICTURES = {".png", ".jpg", ".jpeg"}


def read_others(
    given: Sequence[str], bundle: Bundle, progress: Progress
) -> tuple[tuple[str, Images], ...]:
    """The images of each folder as the bundle sees them, by name.

    given: each "NAME=FOLDER", or a folder whose own name is taken. Pictures and DICOM files, at any
    depth. What the service refuses never reaches the model: it is counted in a note. Raises
    `DataError` for a folder without a single image.
    """
    found = []
    for text in given:
        name, _, path = text.rpartition("=")
        folder = Path(path)
        name = name or folder.resolve().name
        images, refused, unreadable = _read(folder, bundle)
        if not images and not refused:
            raise DataError(f"{folder} holds no image that can be read (DICOM, PNG or JPEG)")
        if refused:
            progress.note(f"{name}: the service refuses {refused} of these images")
        if unreadable:
            progress.note(f"{name}: {unreadable} files are no images")
        if images:
            found.append((name, np.stack(images)))
    return tuple(found)


def _read(folder: Path, bundle: Bundle) -> tuple[list[Images], int, int]:
    """Images (C, S, S), how many are refused, and how many files are no images."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(paths) > MOST:
        order = np.random.default_rng(SEED).permutation(len(paths))[:MOST]
        paths = [paths[i] for i in sorted(order.tolist())]
    colour = "photograph" in bundle.manifest.source_kinds
    images, refused, unreadable = [], 0, 0
    for path in paths:
        try:
            if path.suffix.lower() in PICTURES:
                reader = Radiograph.from_photograph if colour else Radiograph.from_picture
                radiograph = reader(path)
            else:
                radiograph = Radiograph.from_dataset(pydicom.dcmread(path), InputSettings())
            tensor, _ = bundle.preprocessing(radiograph)
        except Refused:
            refused += 1
        except (DataError, *UNREADABLE):
            unreadable += 1
        else:
            if len(tensor) == (3 if colour else 1):
                images.append(tensor)
    return images, refused, unreadable
