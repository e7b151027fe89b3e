"""Results of subgroups: by view, sex, age and how much of the image the ground truth covers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from ..arrays import Regions
from ..data.cases import Case
from ..data.tables import read_age, read_sex
from ..statistics import area_under_curve, figure, mean
from .scores import Columns

AGES = ((0, 40, "under 40"), (40, 65, "40 to 64"), (65, 200, "65 and over"))
SIZES = ((0.0, 0.1, "under 10 %"), (0.1, 0.25, "10 to 25 %"), (0.25, 1.01, "25 % and over"))
SHOWN = ("relevance_mass", "relevance_rank", "faithfulness")
UNKNOWN = "not known"

Groups = dict[str, NDArray[np.str_]]
"""A property -> its value of each image."""


def properties(cases: Sequence[Case]) -> Groups:
    """View, sex and age band of each case, by its table, else by the header of its DICOM file."""
    rows = [_properties(case) for case in cases]
    names = ("view", "sex", "age")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def _properties(case: Case) -> tuple[str, str, str]:
    view, sex, age = case.view, case.sex, case.age
    if case.kind == "dicom" and not (view and sex and age is not None):
        try:
            header: pydicom.Dataset = pydicom.dcmread(case.path, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            header = pydicom.Dataset()
        view = view or str(header.get("ViewPosition", ""))
        sex = sex or read_sex(str(header.get("PatientSex", "")))
        if age is None:
            age = read_age(str(header.get("PatientAge", "")).removesuffix("Y"))
    band = UNKNOWN if age is None else next(name for low, high, name in AGES if low <= age < high)
    return view or UNKNOWN, sex or UNKNOWN, band


def sizes(truth: Regions) -> NDArray[np.str_]:
    """How much of its image each region covers, as a band."""
    shares = truth.mean(axis=(1, 2))
    return np.array([next(n for low, high, n in SIZES if low <= share < high) for share in shares])


def _values(found: NDArray[np.str_]) -> list[str]:
    """The values that occur: bands in their order, what is not known at the end."""
    order = [name for *_, name in (*AGES, *SIZES)]
    return sorted(
        set(found.tolist()),
        key=lambda v: (v == UNKNOWN, order.index(v) if v in order else -1, v),
    )


def by_subgroup(
    groups: Groups, columns: Mapping[str, Columns], patients: Sequence[str]
) -> dict[str, Any]:
    """Each property's values -> `images`, and `methods` -> metric -> figure, JSON-able."""
    found: dict[str, Any] = {}
    for name, values in groups.items():
        found[name] = {}
        for value in _values(values):
            rows = np.flatnonzero(values == value)
            whose = [patients[i] for i in rows.tolist()]
            found[name][value] = {
                "images": len(rows),
                "methods": {
                    method: {
                        metric: mean(own[metric][rows], whose) for metric in SHOWN if metric in own
                    }
                    for method, own in columns.items()
                },
            }
    return found


def auc_by_subgroup(
    groups: Groups,
    probability: NDArray[np.float32],
    labels: NDArray[np.float32],
    patients: Sequence[str],
) -> dict[str, Any]:
    """Each property's values -> AUC, where both labels occur."""
    found: dict[str, Any] = {}
    for name, values in groups.items():
        found[name] = {}
        for value in _values(values):
            rows = np.flatnonzero(values == value)
            p, y = probability[rows], labels[rows]
            if 0 < y.sum() < len(y):
                found[name][value] = figure(
                    lambda r, p=p, y=y: area_under_curve(p[r], y[r]),  # type: ignore[misc]
                    [patients[i] for i in rows.tolist()],
                )
    return found
