"""Which images a method is asked for, by a clock that the test moves."""

from dataclasses import replace
from typing import Any

import numpy as np

from tests.conftest import random_network
from trainer.evaluation.maps import attribute
from trainer.evaluation.methods import Method, methods, methods_for_representations
from trainer.evaluation.settings import EvaluationSettings
from trainer.progress import Silent

SETTINGS = EvaluationSettings(slow_seconds=0.5, subset=3, relax_masks_cpu=10)
IMAGES = np.random.default_rng(0).random((6, 1, 64, 64), np.float32)


class Clock:
    """A clock that stands still, and a method that moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def slow(self, method: Method, seconds: float = 1.0) -> Method:
        def maps(*arguments: Any) -> Any:
            self.now += seconds
            return method.maps(*arguments)

        return replace(method, maps=maps)


def counts(chosen: dict[str, Method], settings: EvaluationSettings, clock: Clock) -> dict[str, int]:
    answers = attribute(random_network(), chosen, IMAGES, settings, Silent(), clock=clock)
    assert all(a.whole == (len(a.by_row) == len(IMAGES)) for a in answers.values())
    return {key: len(answer.by_row) for key, answer in answers.items()}


def test_a_slow_method_sees_the_subset() -> None:
    clock = Clock()
    known = methods(SETTINGS)
    chosen = {"nemt": known["nemt"], "random": clock.slow(known["random"])}
    assert counts(chosen, SETTINGS, clock) == {"nemt": 6, "random": 3}
    patient = SETTINGS.model_copy(update={"slow_seconds": 1.5})
    assert counts(chosen, patient, clock) == {"nemt": 6, "random": 6}


def test_u_relax_is_as_slow_as_relax() -> None:
    """In the subset RELAX has done its work already."""
    clock = Clock()
    chosen = methods_for_representations(SETTINGS, "cpu")
    chosen["relax"] = clock.slow(chosen["relax"])
    assert counts(chosen, SETTINGS, clock) == {
        "nemt": 6, "relax": 3, "u_relax": 3, "centred_blob": 6, "random": 6,
    }  # fmt: skip


def test_a_failure_is_counted_with_its_reason_and_makes_no_map() -> None:
    def odd(network: Any, images: Any) -> Any:
        row = [np.array_equal(image, images[0]) for image in IMAGES].index(True)
        if row == 1:
            raise RuntimeError("out of luck")
        return images[:, 0] * (np.nan if row == 2 else 1)

    chosen = {"odd": Method(name="odd", library="", settings="", maps=odd)}
    result = attribute(random_network(), chosen, IMAGES, EvaluationSettings(), Silent())["odd"]
    assert result.failed == {1: "RuntimeError: out of luck", 2: "the map is not finite"}
    assert result.rows.tolist() == [0, 3, 4, 5]
    assert result.maps.shape == (4, 64, 64)
