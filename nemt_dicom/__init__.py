"""NEMt DICOM: explains chest radiographs beside a PACS. Research only, not for diagnosis.

For notebooks:

    from nemt_dicom import explain_file

    explained = explain_file("chest.dcm")
    explained.explanation.evidence.probability   # p of the target, in [0, 1]
    explained.explanation.mask                   # (rows, columns) float32, 1 = evidence
    explained.picture()                          # the overlay, as a PACS shows it

What is not in `__all__` may change in any release.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemt_dicom.intake.radiograph import Radiograph
    from nemt_dicom.model.bundle import Bundle
    from nemt_dicom.model.explainer import Explainer
    from nemt_dicom.model.explanation import Explanation
    from nemt_dicom.pipeline import explain_file

__version__ = "0.8.0"

__all__ = ["Bundle", "Explainer", "Explanation", "Radiograph", "__version__", "explain_file"]

_HOMES = {
    "Bundle": "nemt_dicom.model.bundle",
    "Explainer": "nemt_dicom.model.explainer",
    "Explanation": "nemt_dicom.model.explanation",
    "Radiograph": "nemt_dicom.intake.radiograph",
    "explain_file": "nemt_dicom.pipeline",
}
"""Where each public name is defined. It is imported when it is first used: the listener, which
imports this package as well, must not load torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
