"""An evaluation's figures in the bundle that they are of: manifest and model card."""

import hashlib
from typing import Any

from nemt_dicom.model.bundle import Bundle, write_manifest

from ..evaluation.evaluate import for_manifest
from .model_card import model_card


def publish(bundle: Bundle, summary: dict[str, Any]) -> Bundle:
    """Writes the figures into the bundle's folder and reads it back.

    Weights and thresholds stay as they are; the bundle's digest, which covers all its files, is
    another one afterwards. A bundle that is being served has to be served anew.
    """
    content = bundle.manifest.model_dump(mode="json") | {"metrics": for_manifest(summary)}
    card = model_card(content, bundle.architecture.to_manifest())
    content["sha256"]["MODEL_CARD.md"] = hashlib.sha256(card.encode()).hexdigest()
    (bundle.folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    write_manifest(bundle.folder, content)
    return Bundle.load(bundle.folder)
