"""Where a bundle comes from: its manifest's account of data, recipe, code and machine."""

from typing import Any

import torch

from nemt_dicom import __version__
from nemt_dicom.model.network import ExplainedNetwork

from .data.cases import Dataset, describe, fingerprint
from .provenance import file_digest, libraries
from .seen_patients import record_of_seen
from .training.classifier import CLASSIFIER
from .training.places import Places
from .training.recipe import Recipe
from .training.thresholds import Thresholds


def describe_bundle(
    dataset: Dataset,
    recipe: Recipe,
    places: Places,
    network: ExplainedNetwork,
    thresholds: Thresholds,
) -> dict[str, Any]:
    """The manifest without what `bundle.save` adds; no folder of this machine stands in it."""
    architecture = network.architecture
    kinds = {case.kind for case in dataset.cases if case.split == "train"}
    return {
        "name": architecture.target,
        "version": __version__,
        "target": architecture.target,
        "source_kinds": sorted(kinds),
        "decision_threshold": thresholds.decision_threshold,
        "mask_threshold": thresholds.mask_threshold,
        "evidence_margin": thresholds.evidence_margin,
        "fill": recipe.served_fill,
        "preprocessing": recipe.preprocessing.to_manifest(),
        "training": {
            "recipe": recipe.to_manifest(),
            "target_model_file": file_digest(places.target_model),
            "target_model_bundle": trained_by(places),
            "initial_weights_file": file_digest(places.initial_weights),
            "thresholds": thresholds.found,
            "libraries": libraries(),
            "parameters": {
                "target_model": _count(network.target_model),
                "explanation_module": _count(network.explanation_module),
            },
        },
        "data": {
            "sources": sorted({case.source for case in dataset.cases}),
            "label": dataset.target,
            "splits": describe(dataset.cases),
            "fingerprint": fingerprint(dataset.cases),
            "notes": list(dataset.notes),
            "seen": record_of_seen(dataset.cases, places),
        },
        "metrics": {},
    }


def trained_by(places: Places) -> dict[str, Any] | None:
    """Which bundle trained what is taken of another one, and how that says it did."""
    bundle = places.bundle
    if not bundle:
        return None
    manifest, training = bundle.manifest, bundle.manifest.training
    as_they_are = (
        "code", "device", "target_model_file", "target_model_bundle", "initial_weights_file"
    )  # fmt: skip
    found = {
        "name": manifest.name,
        "version": manifest.version,
        "digest": bundle.digest,
        "data": manifest.data.get("fingerprint"),
        "epochs": training.get("epochs", []),
        **{key: training.get(key) for key in as_they_are},
    }
    if taken := training.get("target_model_bundle"):
        if not places.keep_module:
            found = start_of(taken)
        elif taken["module_kept"]:
            found = taken  # for the one named trained nothing
    epochs = [e for e in found["epochs"] if places.keep_module or e[0] == CLASSIFIER]
    return found | {"module_kept": places.keep_module, "epochs": epochs}


def start_of(training: dict[str, Any]) -> dict[str, Any]:
    """The account of the run that trained a bundle's target model, or that was given its file."""
    return [training, *taken_from(training)][-1]


def taken_from(training: dict[str, Any]) -> list[dict[str, Any]]:
    """The accounts of all bundles whose work a bundle holds, the latest first."""
    found = []
    while taken := training.get("target_model_bundle"):
        found.append(taken)
        training = taken
    return found


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
