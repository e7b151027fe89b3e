"""Maps, scores and seconds of every method on the same images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import MethodResult, Seconds
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Maps, Regions
from ..data.examples import Examples
from ..inference import explained_probability
from ..progress import Progress
from ..provenance import device_name
from ..statistics import Patients
from .decisions import Device
from .maps import Attributed, attribute
from .methods import Method, remember
from .result_store import ResultStore
from .results import method_result
from .scores import Columns, Compared, methods_table, scores
from .settings import NEMT, EvaluationSettings
from .timing import TARGET_MODEL, time_methods

_TIMINGS = TypeAdapter(dict[str, Seconds])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A bundle with the images of a split and its answers; what all parts start from."""

    bundle: Bundle
    network: ExplainedNetwork
    examples: Examples
    patients: Patients
    answer: NDArray[np.float32]
    masks: Maps
    device: Device
    settings: EvaluationSettings
    progress: Progress

    @property
    def has_target(self) -> bool:
        """Whether the bundle explains one fixed target."""
        return self.bundle.architecture.explains == "target"

    @property
    def machine(self) -> str:
        """The processor, as people name it."""
        return device_name(self.device, torch.get_num_threads())


def images_to_compare(
    asked: Asked, rows: NDArray[np.intp], truth: Regions | None, store: ResultStore
) -> Compared:
    """The images `rows` with their ground truth (n, S, S), as every method is compared on them."""
    images = asked.examples.take(rows)
    probability, index = explained_probability(asked.network, images)
    return Compared(
        images=images,
        truth=truth,
        probability=probability,
        index=index,
        threshold=asked.bundle.manifest.mask_threshold,
        device=asked.device,
        store=store,
        settings=asked.settings,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Maps, scores and figures of every method, of the images that belong to `patients`."""

    patients: Patients
    attributed: Mapping[str, Attributed]
    columns: Mapping[str, Columns]
    results: dict[str, MethodResult]
    classifier: Seconds


def compare(
    asked: Asked,
    compared: Compared,
    methods: Mapping[str, Method],
    patients: Patients,
) -> Comparison:
    """Asks every method for its maps, and measures them. patients: of the images compared."""
    progress, store = asked.progress, compared.store
    attributed = attribute(
        asked.network,
        methods,
        compared.images,
        asked.settings,
        progress,
        store=store,
    )
    columns = {}
    progress.stage("scores", len(methods))
    for key, method in methods.items():
        columns[key] = scores(compared, attributed[key], is_mask=key == NEMT)
        progress.step(method.name)
    timings = _time(asked, compared, methods, attributed, patients)
    figures = methods_table(columns, patients)
    curves = asked.settings.thorough and compared.probability is not None
    return Comparison(
        patients=patients,
        attributed=attributed,
        columns=columns,
        results={
            key: method_result(
                method,
                attributed[key],
                figures[key],
                timings.get(key),
                compared if curves else None,
            )
            for key, method in methods.items()
        },
        classifier=timings[TARGET_MODEL],
    )


def _time(
    asked: Asked,
    compared: Compared,
    methods: Mapping[str, Method],
    attributed: Mapping[str, Attributed],
    patients: Patients,
) -> dict[str, Seconds]:
    """Seconds of the methods that have maps, on images that all of them have a map of.

    If there is no such image, only the methods that failed on no image are timed.
    """
    working = {key: method for key, method in methods.items() if attributed[key].by_row}
    rows = set(range(len(compared.images))).difference(*(attributed[k].failed for k in working))
    if not rows:
        working = {key: m for key, m in working.items() if not attributed[key].failed}
        rows = set(range(len(compared.images)))
    chosen = sorted(rows)
    images, owners, settings = compared.images[chosen], patients.take(chosen), asked.settings
    further = (
        f"{asked.machine} {owners} {settings.timing_rounds} {settings.timing_slow_rounds} "
        f"{settings.timing_slow_seconds} {settings.timing_batch}"
    )
    return remember(
        compared.store,
        "time",
        _TIMINGS,
        working,
        images,
        further,
        lambda: time_methods(asked.network, working, images, owners, settings, asked.progress),
    )
