"""A training run from labelled folders to a bundle: it reads top to bottom.

labelled images -> classifier -> explanation module -> thresholds -> bundle -> evaluation of that
bundle as it is served -> the same bundle with its figures and its model card.
"""

import hashlib
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nemt_dicom import bundle as bundles
from nemt_dicom.bundle import Bundle
from nemt_dicom.errors import TrainingError
from nemt_dicom.network import ExplainedNetwork

from . import report
from .card import model_card
from .classifier import Epoch, build_network, probabilities, train_classifier
from .config import TrainingConfig
from .datasets import Case, Examples, describe, find_cases, fingerprint, load_examples
from .evaluate import evaluate
from .explanation import soft_masks, train_explanation_module
from .progress import Progress
from .thresholds import Thresholds, choose_thresholds

BUNDLE_VERSION = "0.1.0"


def run(config: TrainingConfig, folders: Sequence[Path], out: Path, progress: Progress) -> Bundle:
    """Trains a bundle on `folders`, writes it to `out` and its record to `out`/run.

    Raises `DataError` and `TrainingError`; nothing is trained before all data have been read.
    """
    started, code = time.monotonic(), code_state()
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty; choose a new folder")
    _make_repeatable(config)
    cases = find_cases(folders, target=config.target, validation_share=config.validation_share)
    network = build_network(config)
    train, validation = (_load(cases, split, config, progress) for split in ("train", "validation"))
    (out / "run").mkdir(parents=True)
    epochs: list[Epoch] = []

    def record(epoch: Epoch) -> None:
        epochs.append(epoch)
        report.write_metrics(out / "run" / "metrics.csv", epochs)
        report.draw_curves(out / "run" / "curves.png", epochs)

    train_classifier(network, train, validation, config, progress, record)
    train_explanation_module(network, train, validation, config, progress, record)
    minutes = round((time.monotonic() - started) / 60, 1)
    facts = {
        "minutes": minutes,
        "code": code,
        "epochs": [[e.part, e.number, e.figures] for e in epochs],
    }
    return finish(network, validation, cases, config, facts, out, progress)


def finish(
    network: ExplainedNetwork,
    validation: Examples,
    cases: Sequence[Case],
    config: TrainingConfig,
    facts: dict[str, Any],
    out: Path,
    progress: Progress,
) -> Bundle:
    """From a trained network to its bundle: thresholds, evaluation as it is served, model card.

    facts: what else the manifest shall say of the training.
    """
    change = round_to_half(network, validation)
    progress.note(f"float16 weights change p by at most {change:.4f} on the validation images")
    thresholds = choose_thresholds(network, validation, config.fill, config.seed, progress)
    answers = soft_masks(network, validation.images)
    report.draw_masks(out / "run" / "masks.png", validation, *answers, thresholds.mask_threshold)
    network.to("cpu")
    description = _description(config, cases, thresholds)
    description["training"] |= facts | {
        "half_precision_changes_p": round(change, 6),
        "parameters": {
            "target_model": _count(network.target_model),
            "explanation_module": _count(network.explanation_module),
        },
    }
    draft = bundles.save(out, network, description, "# Draft, not yet evaluated\n")
    description["metrics"] = evaluate(draft, cases, device=config.device, progress=progress)
    if "localisation" in description["metrics"]:
        report.draw_comparison(out / "run" / "comparison.png", description["metrics"])
    card = model_card(description, network.architecture.to_manifest())
    return bundles.save(out, network, description, card)


def round_to_half(network: ExplainedNetwork, validation: Examples) -> float:
    """Rounds all weights to what a bundle stores of them, most of them float16.

    Everything measured afterwards is measured on the weights that ship. Returns by how much p of a
    validation image changes at most. Raises `TrainingError` where a weight does not fit.
    """
    images = torch.from_numpy(validation.images)
    before = probabilities(network, images)
    rounded = {
        k: bundles.as_stored(v).to(v.dtype) if v.is_floating_point() else v
        for k, v in network.state_dict().items()
    }
    if not all(bool(torch.isfinite(v).all()) for v in rounded.values()):
        raise TrainingError("a weight is too large for float16")
    network.load_state_dict(rounded)
    return float((probabilities(network, images) - before).abs().max())


def code_state() -> dict[str, Any]:
    """Which code trains: release, commit, whether it was changed since, digest of the sources."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    sources = hashlib.sha256()
    for path in sorted([*root.glob("trainer/*.py"), *root.glob("nemt_dicom/*.py")]):
        sources.update(path.name.encode() + b"\0" + path.read_bytes())
    changes = git("status", "--porcelain", "--", "trainer", "nemt_dicom/*.py")
    try:
        release = version("nemt-dicom")
    except PackageNotFoundError:
        release = "not installed"
    return {
        "version": release,
        "commit": git("rev-parse", "--verify", "HEAD") or "unknown",
        "dirty": None if changes is None else bool(changes),
        "sources": sources.hexdigest(),
    }


def device_name(config: TrainingConfig) -> str:
    """The processor as people name it."""
    if config.device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return f"{model or platform.machine()}, {config.threads} threads"


def _load(
    cases: Sequence[Case], split: str, config: TrainingConfig, progress: Progress
) -> Examples:
    chosen = [case for case in cases if case.split == split]
    progress.stage(f"reading, {split}", len(chosen))
    return load_examples(chosen, config.preprocessing, done=progress.step)


def _description(
    config: TrainingConfig, cases: Sequence[Case], thresholds: Thresholds
) -> dict[str, Any]:
    """The manifest without what `bundle.save` adds; no folder of this machine stands in it."""
    pictures = {case.path.suffix.lower() != ".dcm" for case in cases if case.split == "train"}
    return {
        "name": config.target,
        "version": BUNDLE_VERSION,
        "target": config.target,
        "source_kinds": ["picture" if picture else "dicom" for picture in sorted(pictures)],
        "decision_threshold": thresholds.decision_threshold,
        "mask_threshold": thresholds.mask_threshold,
        "evidence_margin": thresholds.evidence_margin,
        "fill": config.fill,
        "preprocessing": config.preprocessing.to_manifest(),
        "training": {
            "recipe": config.to_manifest(),
            "thresholds": thresholds.found,
            "device": device_name(config),
            "libraries": {name: version(name) for name in ("torch", "timm", "prodigyopt")},
        },
        "data": {
            "sources": sorted({case.source for case in cases}),
            "splits": describe(cases),
            "fingerprint": fingerprint(cases),
        },
        "metrics": {},
    }


def _make_repeatable(config: TrainingConfig) -> None:
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if config.device == "cpu":
        torch.set_num_threads(config.threads)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
