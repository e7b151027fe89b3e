"""An evaluation's figures in the bundle that they are of: manifest and model card."""

import hashlib

from nemt_dicom.model.bundle import Bundle, write_manifest
from nemt_dicom.model.evaluation import Evaluation

from .model_card import model_card
from .schema2 import description_of, to_schema_2


def publish(bundle: Bundle, evaluation: Evaluation) -> Bundle:
    """Writes the figures into the bundle's folder and reads it back.

    Weights and thresholds stay as they are; the bundle's digest, which covers all its files, is
    another one afterwards. A bundle that is being served has to be served anew.
    """
    content = bundle.manifest.model_dump(mode="json") | {"metrics": to_schema_2(evaluation)}
    card = model_card(description_of(content), bundle.architecture, evaluation)
    content["sha256"]["MODEL_CARD.md"] = hashlib.sha256(card.encode()).hexdigest()
    (bundle.folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    write_manifest(bundle.folder, content)
    return Bundle.load(bundle.folder)
