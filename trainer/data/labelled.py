"""The content of a label table: labelled images, and the listing of one data folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .tables import Split

Source = Literal["RSNA", "NIH", "HAM10000", "CSV"]
Kind = Literal["dicom", "picture", "photograph"]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image that a table names. The file may be missing.

    path: the image file.
    source: the layout of the data folder.
    kind: how the file is read, see `Radiograph`.
    patient: the patient's name in the table (HAM10000: the lesion). All images of a patient are in
        one split.
    label: 1 if the target is present, otherwise 0.
    class_index: index of the class in `Listing.outputs`; None unless classes exclude each other.
    findings: 1 or 0 for every other label that is known for the image, by canonical name.
    mined: whether a program took the labels from the text of reports.
    view: "AP", "PA" or "".
    sex: "F", "M" or "".
    age: in years; None if the table does not give it.
    """

    path: Path
    source: Source
    kind: Kind
    patient: str
    label: int
    class_index: int | None = None
    findings: Mapping[str, int] = field(default_factory=dict)
    mined: bool = False
    view: str = ""
    sex: str = ""
    age: int | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of one folder.

    images: each image with the split that its table gives; None if the table gives no split.
    outputs: outputs of a classifier for these images: the target, or all classes if they exclude
        each other.
    nih_images: names that NIH ChestX-ray14 gives to the files of these images.
    patients_known: False if the patients are unknown. Then each image counts as one patient.
    """

    images: tuple[tuple[Labelled, Split | None], ...]
    outputs: tuple[str, ...]
    nih_images: frozenset[str] = frozenset()
    patients_known: bool = True
