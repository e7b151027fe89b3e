"""Which methods and images the further tests are made of: model dependence, stability, silence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import TypeAdapter

from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import Answers, Figure, Randomisation, Stability
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images, Regions
from ..data.examples import Examples
from ..progress import Progress
from ..statistics import Patients
from .methods import Method, remember
from .model_dependence import input_invariance, randomisation
from .result_store import T, digest
from .robustness import answers, scrambled, stability
from .scores import Compared
from .settings import MEAN_OF_BOXES, NEMT, SHUFFLED
from .subset import subset

_RANDOMISATION = TypeAdapter(Randomisation)
_FIGURES = TypeAdapter(dict[str, Figure])
_STABILITY = TypeAdapter(dict[str, dict[str, Stability]])


@dataclass(frozen=True, kw_only=True)
class FurtherTests:
    """Dependence on the model and stability; the fields are those of `Evaluation`."""

    randomisation: Randomisation | None = None
    input_invariance: dict[str, Figure] = field(default_factory=dict)
    stability: dict[str, dict[str, Stability]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Subset:
    """The seeded subset of the images compared, and what keeps the results of its tests.

    images: (n, C, S, S) in [0, 1].
    truth: (n, S, S); None if the data have no ground truth.
    threshold: the bundle's `mask_threshold`.
    """

    images: Images
    truth: Regions | None
    patients: Patients
    compared: Compared
    threshold: float

    @classmethod
    def of(cls, compared: Compared, patients: Patients, threshold: float) -> "_Subset":
        """The subset. patients: of all images compared."""
        chosen = subset(len(compared.images), compared.settings.subset)
        return cls(
            images=compared.images[chosen],
            truth=None if compared.truth is None else compared.truth[chosen],
            patients=patients.take(chosen),
            compared=compared,
            threshold=threshold,
        )

    def remembered(
        self, name: str, kind: TypeAdapter[T], used: Mapping[str, Method], test: Callable[[], T]
    ) -> T:
        """The result of a test of these methods: a kept one, if there is one."""
        where = "" if self.truth is None else digest(self.truth)
        groups = self.compared.settings.layer_groups
        further = f"{self.threshold} {groups} {where} {self.patients}"
        return remember(self.compared.store, name, kind, used, self.images, further, test)


def further_tests(
    compared: Compared,
    patients: Patients,
    bundle: Bundle,
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    seconds: Mapping[str, float],
    progress: Progress,
) -> FurtherTests:
    """Dependence on the model and stability, for the seeded subset.

    methods: the ones that made a map of every image asked for. seconds: an image, of each method.
    Without a GPU slow methods take no part, apart from the explanation module.
    """
    settings, threshold = compared.settings, bundle.manifest.mask_threshold
    few = _Subset.of(compared, patients, threshold)
    able = _fast_enough(methods, seconds, compared, settings.slow_seconds)
    quick = _fast_enough(able, seconds, compared, settings.quick_seconds)
    no_test = ("random", MEAN_OF_BOXES)  # one must change, the other cannot
    still = {key: method for key, method in quick.items() if key not in no_test}
    shared = few.images, few.patients, progress
    return FurtherTests(
        randomisation=few.remembered(
            "randomisation",
            _RANDOMISATION,
            quick,
            lambda: randomisation(network, quick, *shared, groups=settings.layer_groups),
        ),
        input_invariance=few.remembered(
            "invariance", _FIGURES, able, lambda: input_invariance(network, able, *shared)
        ),
        stability=few.remembered(
            "stability",
            _STABILITY,
            still,
            lambda: stability(
                network, still, few.images, few.truth, threshold, few.patients, progress
            ),
        ),
    )


def _fast_enough(
    methods: Mapping[str, Method], seconds: Mapping[str, float], compared: Compared, limit: float
) -> dict[str, Method]:
    """The methods to test; the shuffled module is a test itself."""
    return {
        key: method
        for key, method in methods.items()
        if key != SHUFFLED
        and (key == NEMT or compared.device == "cuda" or seconds.get(key, np.inf) <= limit)
    }


def silence(
    bundle: Bundle,
    network: ExplainedNetwork,
    examples: Examples,
    patients: Patients,
    compared: Compared,
    patients_compared: Patients,
) -> dict[str, Answers]:
    """What the bundle says of images with the target, without it, and of images of nothing."""
    result = {}
    for name, label in (("with the target", 1), ("without the target", 0)):
        rows = np.flatnonzero(examples.labels == label)
        if len(rows):
            images = examples.take(rows)
            result[name] = answers(network, bundle.manifest, images, patients.take(rows))
    chosen = subset(len(compared.images), compared.settings.subset)
    images = scrambled(compared.images[chosen])
    owners = patients_compared.take(chosen)
    return result | {"tiles in random order": answers(network, bundle.manifest, images, owners)}
