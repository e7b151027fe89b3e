"""Maps of randomised and shifted models, of methods whose answer is known."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_network
from trainer.evaluation.methods import Method, methods
from trainer.evaluation.model_dependence import input_invariance, randomisation
from trainer.evaluation.settings import NEMT, EvaluationSettings
from trainer.progress import Silent
from trainer.statistics import Patients

KNOWN = methods(EvaluationSettings(gradient_steps=5))
PATIENTS = Patients(tuple("abcd"), 100)


def smooth_images() -> np.ndarray:
    coarse = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1).numpy()


@pytest.mark.parametrize("key", [NEMT, "other"])
def test_a_module_that_fails_on_a_randomised_model_has_not_passed(key: str) -> None:
    network = random_network()
    images = np.zeros((1, 1, 64, 64), np.float32)

    def maps(asked: Any, images: Any) -> Any:
        if asked is not network:
            raise RuntimeError("fails")
        return np.zeros((1, 64, 64), np.float32)

    chosen = {key: Method(name="x", library="", settings="", maps=maps)}
    one = Patients(("a",), 20)
    if key == NEMT:
        with pytest.raises(RuntimeError, match="fails"):
            randomisation(network, chosen, images, one, Silent(), groups=2)
    else:
        method = randomisation(network, chosen, images, one, Silent(), groups=2).methods[key]
        assert method.fully_randomised is None
        assert method.cascading == (None, None)
        assert not method.survives


def test_a_map_that_ignores_the_model_survives_and_one_of_its_weights_does_not() -> None:
    def by_weight(network: Any, images: Any) -> Any:
        weight = next(network.target_model.parameters()).flatten()[: 8 * 8].detach().numpy()
        return np.broadcast_to(weight.reshape(1, 8, 8), (len(images), 8, 8))

    def by_head(network: Any, images: Any) -> Any:
        weight = network.target_model.get_classifier().weight.flatten()[:64].detach().numpy()
        return np.broadcast_to(weight.reshape(1, 8, 8), (len(images), 8, 8))

    chosen = {
        NEMT: KNOWN[NEMT],
        "centred_blob": KNOWN["centred_blob"],
        "weight": Method(name="w", library="", settings="", maps=by_weight),
        "head": Method(name="h", library="", settings="", maps=by_head),
    }
    result = randomisation(random_network(), chosen, smooth_images(), PATIENTS, Silent(), groups=3)
    blob, weight = result.methods["centred_blob"], result.methods["weight"]
    assert blob.survives
    assert blob.fully_randomised is not None
    assert blob.fully_randomised.mean == 1
    assert not weight.survives  # the first layer is randomised last, from the output to the input
    assert weight.cascading[:2] == weight.independent[:2] == (1, 1)
    assert weight.cascading[2] == weight.independent[2] != 1
    head = result.methods["head"]
    assert 1 not in head.cascading  # randomised first, and so in every further step
    assert head.independent[0] != head.independent[1] == head.independent[2] == 1
    area = result.methods[NEMT].area
    assert area is not None
    assert len(result.layers) == len(area.cascading) == len(area.independent) == 3
    assert blob.area is None


def test_input_invariance_tells_which_methods_see_the_shift() -> None:
    network = random_network()
    with torch.no_grad():  # an output that every feature raises: no class activation map is 0
        network.target_model.get_classifier().weight.abs_()
    chosen = {key: KNOWN[key] for key in (NEMT, "gradcam++", "integrated_gradients")}
    figures = input_invariance(network, chosen, smooth_images(), PATIENTS, Silent())
    assert figures[NEMT].mean == pytest.approx(1, abs=1e-3)
    assert figures["gradcam++"].mean == pytest.approx(1, abs=1e-3)
    assert figures["integrated_gradients"].mean < 0.99
