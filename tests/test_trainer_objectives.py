"""The deletion objective on a network whose answer is known: it looks at one patch."""

from dataclasses import replace

import pytest
import torch
from conftest import random_network
from torch import Tensor

from nemt_dicom.network import ExplainedNetwork
from trainer.objectives import Deletion, respond

SIDE = 32
PATCH = (slice(8, 16), slice(12, 24))
OBJECTIVE = Deletion(
    area_weight=0.5,
    fill="black",
    response="probability",
    exponent=2.0,
    fall_only=True,
    preservation=0.0,
)


class Patch(torch.nn.Module):
    """Probability: high where the patch is bright; nothing else counts."""

    def probability(self, images: Tensor) -> Tensor:
        return torch.sigmoid(12 * (images[:, 0, *PATCH].mean(dim=(-2, -1)) - 0.5))


def bright(value: float = 0.9) -> Tensor:
    return torch.full((1, 1, SIDE, SIDE), value)


def area_and_overlap(objective: Deletion, images: Tensor, steps: int = 150) -> tuple[float, float]:
    """A free mask trained by the objective: its mean, and its mean inside the patch."""
    logits = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    network = Patch()
    for _ in range(steps):
        mask = torch.sigmoid(logits)
        loss = objective.of_mask(network, images, network.probability(images), mask).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mask = torch.sigmoid(logits).detach()
    return float(mask.mean()), float(mask[0, 0, *PATCH].mean())


@pytest.mark.parametrize(
    "objective",
    [OBJECTIVE, replace(OBJECTIVE, response="evidence", exponent=1.0)],
    ids=["paper", "default"],
)
def test_the_mask_finds_the_evidence_and_nothing_else(objective) -> None:
    area, inside = area_and_overlap(objective, bright())
    patch_share = 96 / SIDE**2
    assert inside > 0.4
    assert area < 1.5 * patch_share  # it collapses neither to nothing nor to everything


def test_the_mask_stays_empty_where_there_is_nothing_to_explain() -> None:
    area, _ = area_and_overlap(OBJECTIVE, bright(0.1))
    assert area < 0.02


def test_an_empty_and_a_full_mask_are_worse_than_the_patch() -> None:
    images, network = bright(), Patch()
    response = network.probability(images)
    patch = torch.zeros_like(images)
    patch[0, 0, *PATCH] = 1
    empty, full, right = (
        float(OBJECTIVE.of_mask(network, images, response, mask).loss)
        for mask in (torch.zeros_like(images), torch.ones_like(images), patch)
    )
    assert empty == 0
    assert right < full < empty or right < empty


def test_a_larger_area_weight_gives_a_smaller_mask() -> None:
    cheap, _ = area_and_overlap(replace(OBJECTIVE, area_weight=0.1), bright())
    dear, _ = area_and_overlap(replace(OBJECTIVE, area_weight=4.0), bright())
    assert dear < cheap


def test_fall_only_earns_nothing_by_a_rise() -> None:
    images, network = bright(0.1), Patch()
    response = network.probability(images)

    class Rising(Patch):
        def probability(self, images: Tensor) -> Tensor:
            return 1 - super().probability(images)

    rising = Rising()
    response = rising.probability(bright())
    mask = torch.ones(1, 1, SIDE, SIDE) * 0.9
    fall_only = OBJECTIVE.of_mask(rising, bright(), response, mask)
    any_change = replace(OBJECTIVE, fall_only=False).of_mask(rising, bright(), response, mask)
    assert float(fall_only.fall) < -0.5
    assert float(fall_only.loss) == pytest.approx(0.5 * 0.9)
    assert float(any_change.loss) < float(fall_only.loss)


def test_preservation_charges_for_evidence_left_out() -> None:
    images, network = bright(), Patch()
    response = network.probability(images)
    patch = torch.zeros_like(images)
    patch[0, 0, *PATCH] = 1
    objective = replace(OBJECTIVE, preservation=1.0)

    def charge(mask: Tensor) -> float:
        with_term = objective.of_mask(network, images, response, mask).loss
        return float(with_term - OBJECTIVE.of_mask(network, images, response, mask).loss)

    assert charge(patch) == pytest.approx(0, abs=1e-6)
    assert charge(torch.zeros_like(images)) > 0.5


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_gradients_reach_the_explanation_module_only(fill) -> None:
    network: ExplainedNetwork = random_network()
    before = {k: v.clone() for k, v in network.target_model.state_dict().items()}
    network.train()
    terms = replace(OBJECTIVE, fill=fill)(network, torch.rand(3, 1, 96, 96))
    assert terms.loss.shape == terms.fall.shape == terms.area.shape == (3,)
    terms.loss.mean().backward()
    assert all(p.grad is None for p in network.target_model.parameters())
    assert any(float(p.grad.abs().sum()) > 0 for p in network.explanation_module.parameters())
    after = network.target_model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # batch norm statistics too


def test_evidence_follows_the_logit_and_levels_off() -> None:
    probability = torch.sigmoid(torch.tensor([-9.0, -6.0, 2.0, 4.0, 6.0], dtype=torch.float64))
    low, floor, two, four, six = respond(probability, "evidence").tolist()
    assert floor - low < 0.005
    assert six - four == pytest.approx(0.5, abs=0.01)
    assert four - two == pytest.approx(0.5, abs=0.01)
    assert torch.equal(respond(probability, "probability"), probability)
