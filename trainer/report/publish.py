"""An evaluation's figures in the bundle that they are of: `evaluation.json` and the model card."""

from nemt_dicom.model.bundle import Bundle, save_figures
from nemt_dicom.model.evaluation import Evaluation


def publish(bundle: Bundle, evaluation: Evaluation, card: str) -> Bundle:
    """Writes figures and model card into the bundle's folder and reads it back.

    The model digest stays. A kill leaves the old bundle or the new one.
    """
    return save_figures(bundle, evaluation.for_bundle(), card)
