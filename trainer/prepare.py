"""What a training run starts from: data that were checked, an untrained network, its place.

Every command that trains goes through here: a run, its dry run, the ablation.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nemt_dicom import __version__
from nemt_dicom.errors import TrainingError
from nemt_dicom.model.network import ExplainedNetwork

from .data.cases import Dataset, find_cases, fingerprint, require_both_labels
from .data.examples import Examples, load_examples, require_apart
from .data.ground_truth import require_ground_truth
from .progress import Progress
from .provenance import file_digest, libraries, training_of
from .seen_patients import require_unseen
from .training.distributed import Team
from .training.recipe import Places, TrainingConfig
from .training.target_model import build_network


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What a run starts from: the data, as tables and as examples, and the untrained network."""

    dataset: Dataset
    train: Examples
    validation: Examples
    network: ExplainedNetwork


def prepare(config: TrainingConfig, places: Places, team: Team, progress: Progress) -> Prepared:
    """Reads the tables, then every image into the cache, and builds the network.

    What is wrong with any ground truth is found here, not when training is over.
    """
    dataset = find_cases(
        places.folders,
        target=config.target,
        validation_share=config.validation_share,
        auxiliary=config.auxiliary,
        skip_bad=places.skip_bad,
    )
    for note in dataset.notes:
        progress.note(note)
    network = build_network(config, places, dataset)
    if places.compile:
        network.compile()
        network.target_model.compile()
    train, validation, test = (
        load_split(dataset, split, config, places, progress)
        for split in ("train", "validation", "test")
    )
    require_apart(train, validation, test)
    for examples in (train, validation, test):
        require_ground_truth(examples)
    network.to(team.device)
    read = (*train.cases, *validation.cases, *test.cases)
    dataset = replace(dataset, cases=tuple(read))  # without what could not be read
    require_both_labels(dataset.cases, dataset.target)
    if places.bundle:
        require_unseen(places.bundle, test.cases)
    if places.bundle and training_of(places.bundle)[1].fingerprint != fingerprint(read):
        doubt = (
            f"{places.bundle.manifest.name} {places.bundle.manifest.version} was trained on other "
            "data than these: its target model may have learnt images that here are validation or "
            "test"
        )
        progress.note(doubt)
        dataset = replace(dataset, notes=(*dataset.notes, doubt))
    return Prepared(dataset=dataset, train=train, validation=validation, network=network)


def load_split(
    dataset: Dataset, split: str, config: TrainingConfig, places: Places, progress: Progress
) -> Examples:
    """The examples of one split, through the cache."""
    cases = [case for case in dataset.cases if case.split == split]
    progress.stage(f"reading, {split}", len(cases))
    examples = load_examples(
        cases,
        config.preprocessing,
        cache=places.cache,
        done=progress.step,
        skip_bad=places.skip_bad,
    )
    if examples.skipped:
        progress.note(
            f"{split}: {len(examples.skipped)} images could not be read: "
            f"{', '.join(examples.skipped[:5])}"
        )
    return examples


def frozen_stages(config: TrainingConfig, places: Places) -> int:
    """How many stages of the backbone keep their weights: none of random ones."""
    return config.frozen_stages if config.pretrained or places.initial_weights else 0


def make_repeatable(config: TrainingConfig) -> None:
    """The same seed, threads and libraries give the same bits, on one kind of device.

    Memory that is about to be written is not filled first, which finds only errors of PyTorch's
    own and takes a fifth of a step.
    """
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if config.device == "cpu":
        torch.set_num_threads(config.threads)


def begun_with(prepared: Prepared, places: Places, *, processes: int) -> dict[str, Any]:
    """What beside the recipe decides a run's result."""
    return {
        "processes": processes,
        "training images": fingerprint(prepared.train.cases),
        "validation images": fingerprint(prepared.validation.cases),
        "target model": file_digest(places.target_model),
        "initial weights": file_digest(places.initial_weights),
        "output": prepared.network.architecture.target,
        "outputs": list(prepared.network.architecture.outputs),
        "activation": prepared.network.architecture.activation,
        "software": {"nemt-dicom": __version__} | libraries(),
    }


def require_same(begun: dict[str, Any], path: Path, progress: Progress) -> None:
    """Raises `TrainingError` where `path` says that what goes on was begun as another run.

    Notes where other software began it, which may give other bits.
    """
    recorded = json.loads(path.read_text("utf-8"))
    now = json.loads(json.dumps(begun))  # as it is written
    changed = [
        name
        for ours, theirs in (
            (now, recorded),
            (now["begun_with"], recorded.get("begun_with", {})),
        )
        for name in ours
        if name not in {"begun_with", "software"} and ours[name] != theirs.get(name)
    ]
    if changed:
        raise TrainingError(
            f"{path.parent} was begun with other settings ({', '.join(changed)}); resume with the "
            "same, or choose a new folder"
        )
    theirs = recorded["begun_with"].get("software", {})
    other = [
        f"{name} {theirs.get(name, 'unknown')}"
        for name, release in now["begun_with"]["software"].items()
        if theirs.get(name) != release
    ]
    if other:
        progress.note(f"begun with {', '.join(other)}: other bits than of a run that never stopped")


def require_writable(out: Path) -> None:
    """Raises `TrainingError` where `out` is not a folder that can be made; leaves nothing there."""
    try:
        with TemporaryDirectory(dir=next(p for p in (out, *out.parents) if p.exists())):
            pass
    except OSError as error:
        raise TrainingError(
            f"{out} is not a folder that can be written ({error.strerror}); choose another --out"
        ) from error
