"""What a training run starts from: data that were checked, an untrained network, its place.

Every command that trains goes through here: a run, its dry run, the ablation.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import JsonValue

from nemt_dicom import __version__
from nemt_dicom.errors import TrainingError
from nemt_dicom.files import write_whole
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import ExplainedNetwork

from .data.cases import Dataset, find_cases, fingerprint, require_both_labels
from .data.examples import Examples, load_examples, require_apart
from .data.ground_truth import require_ground_truth
from .progress import Progress
from .provenance import file_digest, libraries, training_of
from .seen_patients import require_unseen
from .training.distributed import Team
from .training.places import Places
from .training.recipe import Recipe
from .training.target_model import build_network

Account = dict[str, dict[str, JsonValue]]
"""`config.json` of a run: its recipe, and what else decides its result."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What a run starts from.

    dataset: the tables, without the images that could not be read.
    train, validation: the examples of these splits.
    network: untrained.
    """

    dataset: Dataset
    train: Examples
    validation: Examples
    network: ExplainedNetwork


def prepare(recipe: Recipe, places: Places, team: Team, progress: Progress) -> Prepared:
    """Reads the tables, then every image into the cache, and builds the network.

    Raises `DataError` and `TrainingError`; an error in any ground truth is told here, not when
    training is over.
    """
    dataset = read_tables(recipe, places)
    for note in dataset.notes:
        progress.note(note)
    network = build_network(recipe, places, dataset)
    train, validation, test = (
        load_split(dataset, split, recipe, places, progress)
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
        dataset = _with_doubts(dataset, places.bundle, progress)
    return Prepared(dataset=dataset, train=train, validation=validation, network=network)


def read_tables(recipe: Recipe, places: Places) -> Dataset:
    """The cases of all data folders. No image is read. Raises `DataError`."""
    return find_cases(
        places.folders,
        target=recipe.data.target,
        validation_share=recipe.data.validation_share,
        auxiliary=recipe.target_model.auxiliary,
        skip_bad=places.skip_bad,
    )


def _with_doubts(dataset: Dataset, bundle: Bundle, progress: Progress) -> Dataset:
    """The data set with notes on what its target model may have learnt of it.

    There is one for whatever cannot be checked, and one if it was trained on another data set.

    Raises `DataError` if the bundle has seen patients of the test split.
    """
    doubts = require_unseen(bundle, [case for case in dataset.cases if case.split == "test"])
    if training_of(bundle)[1].fingerprint != fingerprint(dataset.cases):
        doubts = (
            *doubts,
            f"{bundle.manifest.name} {bundle.manifest.version} was trained on other data than "
            "these: its target model may have learnt images that here are validation or test",
        )
    for doubt in doubts:
        progress.note(doubt)
    return replace(dataset, notes=(*dataset.notes, *doubts))


def load_split(
    dataset: Dataset, split: str, recipe: Recipe, places: Places, progress: Progress
) -> Examples:
    """The examples of one split, through the cache."""
    cases = [case for case in dataset.cases if case.split == split]
    progress.stage(f"reading, {split}", len(cases))
    examples = load_examples(
        cases,
        recipe.preprocessing,
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


def frozen_stages(recipe: Recipe, places: Places) -> int:
    """Number of backbone stages that keep their weights: none if these are random."""
    settings = recipe.target_model
    return settings.frozen_stages if settings.pretrained or places.initial_weights else 0


def make_repeatable(recipe: Recipe) -> None:
    """The same seed, threads and libraries give the same bits, on one kind of device.

    Memory that is about to be written is not filled first, which finds only errors of PyTorch's
    own and takes a fifth of a step.
    """
    torch.manual_seed(recipe.run.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if recipe.run.device == "cpu":
        torch.set_num_threads(recipe.run.threads)


def account_of_start(
    recipe: Recipe, prepared: Prepared, places: Places, *, processes: int
) -> Account:
    """`config.json` of a run: its recipe, and what else decides its result."""
    return {
        "recipe": recipe.to_manifest(),
        "begun_with": _begun_with(prepared, places, processes=processes),
    }


def write_account(path: Path, account: Account) -> None:
    """Writes `config.json`. Raises `OSError`."""
    write_whole(path, (json.dumps(account, indent=2) + "\n").encode())


def _begun_with(prepared: Prepared, places: Places, *, processes: int) -> dict[str, JsonValue]:
    return {
        "processes": processes,
        "training images": fingerprint(prepared.train.cases),
        "validation images": fingerprint(prepared.validation.cases),
        "target model": file_digest(places.target_model),
        "initial weights": file_digest(places.initial_weights),
        "output": prepared.network.architecture.target,
        "outputs": list(prepared.network.architecture.outputs),
        "activation": prepared.network.architecture.activation,
        "software": {"nemt-dicom": __version__, **libraries()},
    }


def require_same(begun: Account, path: Path, progress: Progress) -> None:
    """Raises `TrainingError` if `path` says that what goes on was begun as another run.

    Notes if other software began it, which may give other bits. begun: see `account_of_start`.
    """
    recorded = json.loads(path.read_text("utf-8"))
    if "recipe" not in recorded:
        raise TrainingError(
            f"{path.parent} was begun by a release before 0.8.0, whose recipes had other names: "
            "choose a new folder"
        )
    now = json.loads(json.dumps(begun))  # as it is written
    changed = [
        f"{section}.{name}"
        for section, table in now["recipe"].items()
        for name, value in table.items()
        if value != recorded["recipe"].get(section, {}).get(name)
    ]
    changed += [
        name
        for name, value in now["begun_with"].items()
        if name != "software" and value != recorded["begun_with"].get(name)
    ]
    if changed:
        raise TrainingError(
            f"{path.parent} was begun with other settings ({', '.join(changed)}); resume with the "
            "same, or choose a new folder"
        )
    former = recorded["begun_with"].get("software", {})
    differing = [
        f"{name} {former.get(name, 'unknown')}"
        for name, release in now["begun_with"]["software"].items()
        if former.get(name) != release
    ]
    if differing:
        progress.note(
            f"begun with {', '.join(differing)}: other bits than of a run that never stopped"
        )


def require_writable(out: Path) -> None:
    """Raises `TrainingError` if `out` is not a folder that can be made; leaves nothing there."""
    try:
        with TemporaryDirectory(dir=next(p for p in (out, *out.parents) if p.exists())):
            pass
    except OSError as error:
        raise TrainingError(
            f"{out} is not a folder that can be written ({error.strerror}); choose another --out"
        ) from error
