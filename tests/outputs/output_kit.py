"""What the tests of outputs share: a header, an explanation of its image, and what they come to."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import ComputedRadiographyImageStorage

from nemt_dicom.config import OutputSettings
from nemt_dicom.model.explanation import Evidence, Explanation, Provenance
from nemt_dicom.outputs.derived import Origin

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
