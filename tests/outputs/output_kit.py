"""What the tests of outputs share: a header, an explanation of its image, the objects of both, and
what dciodvfy says of them.
"""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import ComputedRadiographyImageStorage

from nemt_dicom.config import OutputSettings
from nemt_dicom.model.explanation import Evidence, Explanation, Provenance
from nemt_dicom.outputs import secondary_capture, segmentation
from nemt_dicom.outputs.derived import Origin
from nemt_dicom.state.records import Output

ROWS, COLUMNS = 300, 260
RECEIVED = datetime(2026, 3, 4, 23, 30, 15, tzinfo=UTC)


def source(**attributes: object) -> Dataset:
    """The header of a chest radiograph, with `attributes` set, or removed where None."""
    ds = Dataset()
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    ds.Modality, ds.BodyPartExamined = "CR", "CHEST"
    ds.PatientName, ds.PatientID = "Doe^Jane", "P1"
    ds.PatientOrientation = ["L", "F"]
    ds.Rows, ds.Columns, ds.InstanceNumber = ROWS, COLUMNS, 7
    with disable_value_validation():  # real headers hold what the standard forbids
        for keyword, value in attributes.items():
            ds.pop(keyword, None)
            if value is not None:
                setattr(ds, keyword, value)
    return ds


def explanation(p: float = 0.9, occluded: float = 0.3, **changes: object) -> Explanation:
    mask = np.zeros((ROWS, COLUMNS), np.float32)
    mask[40:120, 30:90] = 0.8
    base = Explanation(
        mask=mask,
        segment=mask >= 0.5,
        evidence=Evidence(probability=p, occluded=occluded, kept=0.8),
        provenance=Provenance(
            target="pneumonia",
            bundle_name="test",
            bundle_version="1.0",
            model_digest="ab" * 32,
            decision_threshold=0.5,
            mask_threshold=0.5,
            evidence_margin=0.1,
        ),
        explain_below_threshold=False,
    )
    return replace(base, **changes)


def origin(
    header: Dataset | None = None,
    explained: Explanation | None = None,
    digest: str = "d1",
    **settings,
) -> Origin:
    return Origin(
        source=source() if header is None else header,
        digest=digest,
        explanation=explained or explanation(),
        settings=OutputSettings(**settings),
        received=RECEIVED,
    )


def pixels() -> np.ndarray:
    return np.linspace(0, 1, ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


def read(built: tuple[Output, bytes]) -> Dataset:
    return dcmread(BytesIO(built[1]))


def seg(**kwargs) -> Dataset:
    return read(segmentation.build_segmentation(origin(**kwargs)))


def sc(**kwargs) -> Dataset:
    return read(secondary_capture.build_secondary_capture(origin(**kwargs), pixels()))


BUILT = pytest.mark.parametrize("build", [seg, sc])


def errors_of_outputs(validator: str, built: Origin, folder: Path) -> list[str]:
    found = []
    for output, data in (
        segmentation.build_segmentation(built),
        segmentation.build_fractional(built),
        secondary_capture.build_secondary_capture(built, pixels()),
    ):
        file = folder / f"{output.kind}.dcm"
        file.write_bytes(data)
        found += validator_errors(validator, file)
    return found


def validator_errors(validator: str, file: Path) -> list[str]:
    result = subprocess.run(
        [validator, file], capture_output=True, text=True, errors="replace", check=False
    )
    report = result.stdout + result.stderr
    assert "Segmentation" in report or "SCImage" in report, report  # it did look
    return [line for line in report.splitlines() if line.startswith("Error")]
