"""How good a bundle is, on images that nothing was trained on or chosen by.

The bundle is read back from its folder and asked through `Explainer`, as it is served. Every figure
in a report, in a bundle and in a model card comes from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import (
    Answers,
    Decisions,
    Drawn,
    Evaluation,
    Figure,
    MaskArea,
    Scope,
    Subgroup,
)

from ..data.cases import Dataset, name_few
from ..data.examples import Examples, load_examples
from ..data.ground_truth import ground_truth
from ..inference import soft_masks
from ..progress import Progress
from ..statistics import Patients, average, figure
from . import decisions
from .checks import checks
from .choice import chosen_methods
from .code_versions import code_versions
from .comparison import Asked, Comparison, compare, images_to_compare
from .decisions import Device
from .further_tests import FurtherTests, further_tests, silence
from .methods import Method
from .result_store import ResultStore
from .results import Measured, scope
from .scores import Compared, describe_metrics
from .settings import NEMT, EvaluationSettings
from .subgroups import auc_by_subgroup, by_subgroup, properties, sizes


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    cache: Path,
    *,
    device: Device,
    progress: Progress,
    settings: EvaluationSettings,
    methods: Mapping[str, Method] | None = None,
) -> Measured:
    """Measures a bundle on one split of `dataset`.

    Methods are compared on the images with the target and with ground truth. If the data have no
    ground truth, they are compared on all images with the target, without the figures that need it.
    A bundle without a fixed target has no AUC, decisions or verdicts. The training and validation
    splits give the mean of their ground truth to one baseline, and nothing else.

    methods: by key, instead of the ones that the settings name; the explanation module is among
    them. Raises `DataError` if the split has no image with the target, or if the bundle's answer
    to an image is not finite.
    """
    asked = _ask(bundle, dataset, cache, device, settings, progress)
    boxed, regions = ground_truth(asked.examples)
    rows = boxed if len(boxed) else np.flatnonzero(asked.examples.labels > 0.5)
    store = ResultStore(cache, bundle, device, code_versions())
    compared = images_to_compare(asked, rows, regions if len(boxed) else None, store)
    about = _about_target(asked, boxed)
    if methods is None:
        methods = chosen_methods(settings, bundle, dataset, cache, device, progress)
    comparison = compare(asked, compared, methods, asked.patients.take(rows))
    tests, groups = FurtherTests(), _Groups()
    if settings.thorough:
        tests = _further_tests(asked, comparison, compared, methods)
        groups = _by_group(asked, comparison, compared, rows)
    where = scope(dataset, asked.examples, boxed, settings, asked.machine)
    return Measured(
        results=_results(where, asked, about, compared, comparison, tests, groups),
        examples=asked.examples,
        answer=asked.answer,
        rows=rows,
        compared=compared,
        attributed=comparison.attributed,
        columns=comparison.columns,
    )


def _results(
    where: Scope,
    asked: Asked,
    about: "_AboutTarget",
    compared: Compared,
    comparison: Comparison,
    tests: FurtherTests,
    groups: "_Groups",
) -> Evaluation:
    """The tree, from its parts."""
    share = None
    if compared.truth is not None:
        share = figure(average(compared.truth.mean(axis=(1, 2))), comparison.patients)
    return Evaluation(
        scope=where,
        checks=checks(
            comparison.results,
            about.mask_area,
            truth_share=share,
            has_target=asked.has_target,
            randomisation=tests.randomisation,
            stability=tests.stability,
        ),
        metrics=describe_metrics(compared.images.shape[-1], asked.settings),
        classifier=comparison.classifier,
        mask_area=about.mask_area,
        methods=comparison.results,
        truth_share=share,
        auc=about.auc,
        decisions=about.decisions,
        drawn=about.drawn,
        subgroups=groups.subgroups,
        auc_by_subgroup=groups.auc,
        randomisation=tests.randomisation,
        input_invariance=tests.input_invariance,
        stability=tests.stability,
        silence=groups.silence,
    )


def _ask(
    bundle: Bundle,
    dataset: Dataset,
    cache: Path,
    device: Device,
    settings: EvaluationSettings,
    progress: Progress,
) -> Asked:
    network = bundle.network(device)
    examples = _read(bundle, dataset, cache, settings, progress)
    answer, masks = soft_masks(network, examples.images)
    _require_finite(examples, answer, masks)
    return Asked(
        bundle=bundle,
        network=network,
        examples=examples,
        patients=Patients(examples.patients, settings.resamples),
        answer=answer,
        masks=masks,
        device=device,
        settings=settings,
        progress=progress,
    )


def _require_finite(
    examples: Examples, answer: NDArray[np.float32], masks: NDArray[np.float32]
) -> None:
    """Raises `DataError` if the bundle has no answer to an image; the service refuses it, too."""
    answered = np.isfinite(answer.reshape(len(answer), -1)).all(axis=1)
    rows = np.flatnonzero(~(answered & np.isfinite(masks).all(axis=(1, 2))))
    if len(rows):
        names = [examples.cases[row].path.name for row in rows.tolist()]
        raise DataError(
            f"the bundle's answer to {len(rows)} of {len(examples)} images is not finite (NaN): "
            f"{name_few(names)}. A network that gives NaN cannot be measured: train it again"
        )


def _read(
    bundle: Bundle,
    dataset: Dataset,
    cache: Path,
    settings: EvaluationSettings,
    progress: Progress,
) -> Examples:
    cases = [case for case in dataset.cases if case.split == settings.split]
    if not any(case.label for case in cases):
        raise DataError(
            f"the {settings.split} split has no image with {dataset.target!r}, of {len(cases)} "
            "images: there is nothing to explain"
        )
    progress.stage(f"reading, {settings.split}", len(cases))
    examples = load_examples(
        cases,
        bundle.preprocessing,
        cache=cache,
        done=progress.step,
        skip_bad=settings.skip_bad,
    )
    if not examples.labels.any():
        raise DataError(
            f"no image with {dataset.target!r} of the {settings.split} split can be read: there is "
            "nothing to explain"
        )
    return examples


@dataclass(frozen=True, kw_only=True)
class _AboutTarget:
    """Figures of all images of the split. Without a fixed target there is only the mask's area."""

    mask_area: MaskArea
    auc: dict[str, Figure] = field(default_factory=dict)
    decisions: Decisions | None = None
    drawn: Drawn | None = None


def _about_target(asked: Asked, boxed: NDArray[np.intp]) -> _AboutTarget:
    examples, patients = asked.examples, asked.patients
    area = decisions.mask_area(examples, asked.masks, patients)
    if not asked.has_target:
        return _AboutTarget(mask_area=area)
    threshold = asked.bundle.manifest.decision_threshold
    return _AboutTarget(
        mask_area=area,
        auc=decisions.aucs(examples, asked.answer, patients),
        decisions=decisions.decisions(examples, asked.answer, threshold, patients),
        drawn=decisions.drawn(
            asked.bundle, examples, boxed, patients, asked.device, asked.progress
        ),
    )


def _further_tests(
    asked: Asked, comparison: Comparison, compared: Compared, methods: Mapping[str, Method]
) -> FurtherTests:
    whole = {
        key: method
        for key, method in methods.items()
        if key == NEMT or (comparison.attributed[key].by_row and not comparison.results[key].failed)
    }
    seconds = {
        key: result.seconds.single.mean
        for key, result in comparison.results.items()
        if result.seconds is not None
    }
    return further_tests(
        compared,
        comparison.patients,
        asked.bundle,
        asked.network,
        whole,
        seconds,
        asked.progress,
    )


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """Figures of groups of images; the fields are those of `Evaluation`, `auc` by subgroup."""

    subgroups: dict[str, dict[str, Subgroup]] = field(default_factory=dict)
    auc: dict[str, dict[str, Figure]] = field(default_factory=dict)
    silence: dict[str, Answers] = field(default_factory=dict)


def _by_group(
    asked: Asked, comparison: Comparison, compared: Compared, rows: NDArray[np.intp]
) -> _Groups:
    examples = asked.examples
    everyone = properties(examples.cases)
    groups = {name: values[rows] for name, values in everyone.items()}
    if compared.truth is not None:
        groups["ground truth"] = sizes(compared.truth)
    areas = {}
    if asked.has_target:
        areas = auc_by_subgroup(everyone, asked.answer, examples.labels, asked.patients)
    return _Groups(
        subgroups=by_subgroup(groups, comparison.columns, comparison.patients),
        auc=areas,
        silence=silence(
            asked.bundle, asked.network, examples, asked.patients, compared, comparison.patients
        ),
    )
