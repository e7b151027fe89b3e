"""What the tests of stability make of methods with known answers."""

import numpy as np
import pytest

from tests.conftest import random_network
from tests.trainer.map_kit import BOXES
from trainer.arrays import Images, Maps
from trainer.evaluation.attributions import MapFunction, centred_blob
from trainer.evaluation.methods import FAILURES, Method
from trainer.evaluation.robustness import CHANGES, stability
from trainer.evaluation.settings import NEMT
from trainer.progress import Silent
from trainer.statistics import Patients

IMAGES = np.random.default_rng(0).random((4, 1, 20, 20), dtype=np.float32)
PATIENTS = Patients(("a", "b", "c", "d"), 20)


def method(maps: MapFunction) -> Method:
    return Method(name="a method", library="", settings="", maps=maps)


def fails(network: object, images: Images) -> Maps:
    if images is IMAGES:
        return images[:, 0]
    raise RuntimeError("no map of changed images")


def other_error(network: object, images: Images) -> Maps:
    if images is IMAGES:
        return images[:, 0]
    raise TypeError("a library's own")


def not_finite(network: object, images: Images) -> Maps:
    return images[:, 0] * np.float32(1 if images is IMAGES else np.nan)


def test_a_map_that_ignores_the_image_holds_still() -> None:
    chosen = {"centred_blob": method(centred_blob)}
    rows = stability(random_network(), chosen, IMAGES, None, 0.5, PATIENTS, Silent())
    changes = rows["centred_blob"]
    assert set(changes) == set(CHANGES)
    assert all(row.iou.mean == 1 for name, row in changes.items() if "moved" not in name)
    assert all(row.relevance_mass is None for row in changes.values())


@pytest.mark.parametrize("broken", [fails, other_error, not_finite])
def test_a_method_that_fails_on_changed_images_is_left_out(broken: MapFunction) -> None:
    chosen = {"broken": method(broken), "centred_blob": method(centred_blob)}
    rows = stability(random_network(), chosen, IMAGES, BOXES, 0.5, PATIENTS, Silent())
    assert set(rows) == {"centred_blob"}
    with pytest.raises(FAILURES):
        stability(random_network(), {NEMT: method(broken)}, IMAGES, BOXES, 0.5, PATIENTS, Silent())
