"""An evaluation's figures in the bundle that they are of: `evaluation.json` and the model card."""

from typing import Any

from nemt_dicom.model.bundle import Bundle, save_figures
from nemt_dicom.model.evaluation import Evaluation
from nemt_dicom.model.evaluation_schema2 import from_schema_2, to_schema_2

from ..evaluation.evaluate import for_manifest


def publish(bundle: Bundle, evaluation: Evaluation, card: str) -> Bundle:
    """Writes figures and model card into the bundle's folder and reads it back.

    Networks, thresholds and the model digest stay as they are. A kill leaves the bundle as it was,
    or the new one. A service that has loaded the bundle goes on as before.
    """
    return save_figures(bundle, evaluation, card)


def evaluation_of(summary: dict[str, Any]) -> Evaluation:
    """The figures of `evaluate`, which are dictionaries, as a bundle keeps them."""
    return from_schema_2(for_manifest(summary))


def summary_of(bundle: Bundle) -> dict[str, Any]:
    """The figures of a bundle as the tables read them: the inverse of `evaluation_of`."""
    return {} if bundle.evaluation is None else to_schema_2(bundle.evaluation)
