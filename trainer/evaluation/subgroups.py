"""Results of subgroups: by view, sex, age and how much of the image the ground truth covers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pydicom
from numpy.typing import NDArray

from nemt_dicom.intake.uid import UNREADABLE, UNUSABLE
from nemt_dicom.model.evaluation import Figure, Scores, Subgroup

from ..arrays import Regions
from ..data.cases import Case
from ..data.tables import read_age, read_sex
from ..statistics import Patients, auc, mean
from .scores import Columns

AGES = ((0, 40, "under 40"), (40, 65, "40 to 64"), (65, 200, "65 and over"))
SIZES = ((0.0, 0.1, "under 10 %"), (0.1, 0.25, "10 to 25 %"), (0.25, 1.01, "25 % and over"))
SHOWN = ("relevance_mass", "relevance_rank", "faithfulness")
UNKNOWN = "not known"

Groups = Mapping[str, NDArray[np.str_]]
"""A property -> its value for each image."""


def properties(cases: Sequence[Case]) -> dict[str, NDArray[np.str_]]:
    """View, sex and age band of each case, by its table, else by the header of its DICOM file."""
    rows = [_properties(case) for case in cases]
    names = ("view", "sex", "age")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}


def _properties(case: Case) -> tuple[str, str, str]:
    view, sex, age = case.view, case.sex, case.age
    if case.kind == "dicom" and not (view and sex and age is not None):
        header = _header(case)
        view = view or _text(header, "ViewPosition")
        sex = sex or read_sex(_text(header, "PatientSex"))
        if age is None:
            age = read_age(_text(header, "PatientAge").removesuffix("Y"))
    band = UNKNOWN if age is None else next(name for low, high, name in AGES if low <= age < high)
    return view or UNKNOWN, sex or UNKNOWN, band


def _header(case: Case) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(case.path, stop_before_pixels=True)
    except (OSError, *UNREADABLE):
        return pydicom.Dataset()


def _text(header: pydicom.Dataset, keyword: str) -> str:
    try:
        return str(header.get(keyword, ""))
    except UNUSABLE:
        return ""


def sizes(truth: Regions) -> NDArray[np.str_]:
    """How much of its image each region (N, S, S) covers, as a band: (N,)."""
    shares = truth.mean(axis=(1, 2))
    return np.array([next(n for low, high, n in SIZES if low <= share < high) for share in shares])


def _in_order(values: NDArray[np.str_]) -> list[str]:
    """The values that occur: bands in their order, `UNKNOWN` last."""
    order = [name for *_, name in (*AGES, *SIZES)]
    return sorted(
        set(values.tolist()),
        key=lambda v: (v == UNKNOWN, order.index(v) if v in order else -1, v),
    )


def by_subgroup(
    groups: Groups, columns: Mapping[str, Columns], patients: Patients
) -> dict[str, dict[str, Subgroup]]:
    """The subgroup of each value of each property. columns: by method; groups: of the same rows."""
    return {
        name: {
            value: _subgroup(np.flatnonzero(values == value), columns, patients)
            for value in _in_order(values)
        }
        for name, values in groups.items()
    }


def _subgroup(
    rows: NDArray[np.intp], columns: Mapping[str, Columns], patients: Patients
) -> Subgroup:
    owners = patients.take(rows)
    return Subgroup(
        images=len(rows),
        methods={
            method: Scores(**{m: mean(scores[m][rows], owners) for m in SHOWN if m in scores})
            for method, scores in columns.items()
        },
    )


def auc_by_subgroup(
    groups: Groups,
    probability: NDArray[np.float32],
    labels: NDArray[np.float32],
    patients: Patients,
) -> dict[str, dict[str, Figure]]:
    """The AUC of each value of each property, if both labels occur. probability, labels: (N,)."""
    aucs: dict[str, dict[str, Figure]] = {}
    for name, values in groups.items():
        aucs[name] = {}
        for value in _in_order(values):
            rows = np.flatnonzero(values == value)
            area = auc(probability[rows], labels[rows], patients.take(rows))
            if area is not None:
                aucs[name][value] = area
    return aucs
