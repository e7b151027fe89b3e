"""The objectives on a network whose answer is known: it looks at one patch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from typing import Literal as OneOf

import numpy as np
import pytest
import torch
from torch import Tensor

from nemt_dicom.model.decoders import Norm
from nemt_dicom.model.network import Answer, ExplainedNetwork
from tests.conftest import random_network
from trainer.training.agreement import (
    LARGEST_SQUARE,
    REGIONS,
    SMALLEST_SQUARE,
    SQUARE_NUMBERS,
    agreement_with_squares,
    correlation,
    squares,
)
from trainer.training.augment import smoothing_kernels
from trainer.training.draws import Draws
from trainer.training.objectives import (
    EXPECTED,
    LOGIT_SCALE,
    Deletion,
    Literal,
    Objective,
    Randomness,
    Representation,
    Terms,
    cosine_distance,
    expected,
    fill_of,
    respond,
)

SIDE = 32
PATCH = (slice(8, 16), slice(12, 24))
PATCH_SHARE = 96 / SIDE**2
OBJECTIVE = Deletion(
    area_weight=0.5,
    fill="black",
    response="probability",
    exponent=2.0,
    fall_only=True,
)


class Patch(torch.nn.Module):
    """Log odds: high where the patch is bright; nothing else counts. Called with a mask of its own.

    mask: logits (1, 1, S, S) that the objectives train when they ask this as a network.
    """

    explains_representation = False

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask

    def logits(self, images: Tensor) -> Tensor:
        """(B, 1)."""
        return 12 * (images[:, :1, *PATCH].mean(dim=(-2, -1)) - 0.5)

    def explained_index(self, logits: Tensor) -> Tensor:
        return torch.zeros(len(logits), dtype=torch.int64)

    def log_odds(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        return logits[:, 0]

    def forward(self, images: Tensor, kernels: Tensor | None = None) -> Answer:
        assert self.mask is not None
        mask = torch.sigmoid(self.mask)
        return Answer(self.logits(images), mask, mask)


class PatchEmbedding(Patch):
    """An embedding that looks at one patch: its rows' brightness, and a constant."""

    explains_representation = True

    def logits(self, images: Tensor) -> Tensor:
        """(B, 9)."""
        patch = images[:, 0, *PATCH].mean(dim=-1)
        return torch.cat([patch, torch.full_like(patch[:, :1], 0.5)], dim=1)


def bright(value: float = 0.9) -> Tensor:
    return torch.full((1, 1, SIDE, SIDE), value)


def area_and_overlap(
    objective: Objective,
    images: Tensor,
    steps: int = 150,
    make: Callable[[Tensor], Patch] = Patch,
    start: float = 0.0,
) -> tuple[float, float]:
    """A free mask trained by the objective: its mean, and its mean inside the patch."""
    logits = torch.full((1, 1, SIDE, SIDE), start, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    network: Any = make(logits)
    for _ in range(steps):
        loss = objective(network, images, EXPECTED, 1.0).loss.mean()
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
def test_the_mask_finds_the_evidence_and_nothing_else(objective: Deletion) -> None:
    area, inside = area_and_overlap(objective, bright())
    assert inside > 0.4
    assert area < 1.5 * PATCH_SHARE  # it collapses neither to nothing nor to everything


def test_the_literal_form_shrinks_the_mask_to_nothing() -> None:
    """The printed equation keeps what it marks and charges for it: nothing marked is cheapest."""
    printed = Literal(area_weight=0.5, fill="black", response="probability")
    area, inside = area_and_overlap(printed, bright())
    assert area < 0.01
    assert inside < 0.05
    whole = printed(untrained(9.0), bright(), EXPECTED, 1.0)
    empty = printed(untrained(-9.0), bright(), EXPECTED, 1.0)
    assert float(empty.loss) == pytest.approx(-(float(empty.fall) ** 2), abs=1e-3)
    assert float(empty.loss) < float(whole.loss) == pytest.approx(0.5, abs=1e-3)


def untrained(value: float, make: Callable[[Tensor], Patch] = Patch) -> Any:
    """A network whose mask logits are one value."""
    return make(torch.full((1, 1, SIDE, SIDE), value))


def test_the_price_scales_the_area_only() -> None:
    network = untrained(0.0)
    for objective in (OBJECTIVE, Literal(area_weight=0.5, fill="black", response="probability")):
        free, half, full = (objective(network, bright(), EXPECTED, p).loss for p in (0.0, 0.5, 1.0))
        assert float(full - free) == pytest.approx(0.5 * 0.5, abs=1e-6)
        assert float(half - free) == pytest.approx(0.5 * 0.5 / 2, abs=1e-6)


def test_the_mask_stays_empty_where_there_is_nothing_to_explain() -> None:
    area, _ = area_and_overlap(OBJECTIVE, bright(0.1))
    assert area < 0.02


def of_mask(objective: Deletion, network: Any, images: Tensor, mask: Tensor) -> Terms:
    background = fill_of(images, objective.fill, None)
    return objective.of_mask(network, images, network.logits(images), mask, background)


def test_an_empty_and_a_full_mask_are_worse_than_the_patch() -> None:
    images, network = bright(), Patch()
    patch = torch.zeros_like(images)
    patch[0, 0, *PATCH] = 1
    empty, full, right = (
        float(of_mask(OBJECTIVE, network, images, mask).loss)
        for mask in (torch.zeros_like(images), torch.ones_like(images), patch)
    )
    assert empty == 0
    assert right < full < empty or right < empty


def test_a_larger_area_weight_gives_a_smaller_mask() -> None:
    cheap, _ = area_and_overlap(replace(OBJECTIVE, area_weight=0.1), bright())
    dear, _ = area_and_overlap(replace(OBJECTIVE, area_weight=4.0), bright())
    assert dear < cheap


def test_fall_only_earns_nothing_by_a_rise() -> None:
    class Rising(Patch):
        def logits(self, images: Tensor) -> Tensor:
            return -super().logits(images)

    mask = torch.ones(1, 1, SIDE, SIDE) * 0.9
    fall_only = of_mask(OBJECTIVE, Rising(), bright(), mask)
    any_change = of_mask(replace(OBJECTIVE, fall_only=False), Rising(), bright(), mask)
    assert float(fall_only.fall) < -0.5
    assert float(fall_only.loss) == pytest.approx(0.5 * 0.9)
    assert float(any_change.loss) < float(fall_only.loss)


def test_the_scale_divides_what_falls() -> None:
    mask = torch.ones(1, 1, SIDE, SIDE)
    plain = replace(OBJECTIVE, response="evidence", exponent=1.0)
    fall = float(of_mask(replace(plain, area_weight=1e-9), Patch(), bright(), mask).loss)
    scaled = replace(plain, area_weight=1e-9, scale=4.0)
    assert float(of_mask(scaled, Patch(), bright(), mask).loss) == pytest.approx(fall / 4)
    half = torch.zeros_like(mask)
    half[0, 0, 8:12, 12:24] = 1  # half of the patch
    by_hand = [
        float(respond(x, "evidence"))
        for x in (Patch().logits(bright()), Patch().logits(bright() * (1 - half)))
    ]
    expected = -(by_hand[0] - by_hand[1]) / 4
    assert float(of_mask(scaled, Patch(), bright(), half).loss) == pytest.approx(expected, abs=1e-6)


def test_a_mixed_fill_is_a_third_of_each_and_all_three_in_validation() -> None:
    images = torch.rand(4, 1, SIDE, SIDE)
    found = fill_of(images, "mixed", torch.tensor([0.1, 0.5, 0.9, 0.0]))
    each = {fill: fill_of(images, fill, None) for fill in ("black", "mean", "blur")}
    for row, fill in enumerate(("black", "mean", "blur", "black")):
        assert torch.equal(found[row], each[fill][row])
    validated = [fill_of(images, "mixed", random.fills) for random in expected("mixed", images)]
    assert all(torch.equal(a, b) for a, b in zip(validated, each.values(), strict=True))
    assert expected("blur", images) == [EXPECTED]


# --- agreement with what single squares matter ---

AGREEING = replace(OBJECTIVE, response="evidence", exponent=1.0, agreement=0.5)
CHOICE = Draws((4,), np.arange(1)).uniform("squares", SQUARE_NUMBERS)


def test_squares_lie_inside_and_are_of_one_size_in_an_image() -> None:
    rows = np.arange(200)
    images = torch.zeros(200, 1, 96, 96)
    found = squares(images, Draws((2,), rows).uniform("squares", SQUARE_NUMBERS))
    assert found.shape == (200, REGIONS, 96, 96)
    sides = found.any(dim=3).sum(dim=2)
    assert torch.equal(sides, found.any(dim=2).sum(dim=2))
    assert torch.equal(found.sum(dim=(2, 3)), sides**2)
    assert torch.equal(sides, sides[:, :1].expand(-1, REGIONS))
    assert int(sides.min()) == round(SMALLEST_SQUARE * 96)
    assert int(sides.max()) == round(LARGEST_SQUARE * 96)
    reached = found.flatten(0, 1).any(dim=0)
    assert reached.any(dim=0).all()  # up to the borders
    assert reached.any(dim=1).all()
    grid = squares(images[:2], None)
    assert torch.equal(grid[0], grid[1])
    assert int(grid[0].sum(dim=0).max()) == 1  # apart from each other
    assert torch.equal(grid[0].any(dim=0), grid[0].any(dim=0).flip(0, 1))


def test_correlation_is_pearsons_and_nothing_where_one_is_constant() -> None:
    one, other = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(1))
    by_numpy = [np.corrcoef(a, b)[0, 1] for a, b in zip(one.numpy(), other.numpy(), strict=True)]
    assert correlation(one, other).tolist() == pytest.approx(by_numpy, abs=1e-5)
    assert correlation(one, torch.ones_like(one)).tolist() == [0] * 5


def agrees(mask: Tensor, images: Tensor) -> Tensor:
    network: Any = Patch()
    return agreement_with_squares(
        network,
        images,
        network.logits(images),
        mask,
        CHOICE.expand(len(images), -1),
        response=lambda log_odds: respond(log_odds, "evidence"),
    )


def test_a_mask_agrees_where_squares_matter_as_much_as_it_gives_them() -> None:
    patch = torch.zeros(1, 1, SIDE, SIDE)
    patch[0, 0, *PATCH] = 1
    right, elsewhere = float(agrees(patch, bright())), float(agrees(patch.flip(-2), bright()))
    assert right > 0.95
    assert elsewhere < 0.2
    assert float(agrees(0.3 * patch, bright())) == pytest.approx(right)
    assert float(agrees(1 - patch, bright())) == pytest.approx(-right, abs=1e-4)
    assert float(agrees(torch.ones_like(patch), bright())) == 0


def test_nothing_is_asked_of_a_mask_where_there_is_nothing_to_explain() -> None:
    images = torch.cat([bright(0.1), bright(0.9)])
    mask = torch.rand(2, 1, SIDE, SIDE, requires_grad=True)
    found = agrees(mask, images)
    assert float(found[0].detach()) == 1
    (1 - found).sum().backward()
    assert mask.grad is not None
    assert not mask.grad[0].any()
    assert mask.grad[1].any()


def test_the_weight_and_the_price_charge_what_does_not_agree() -> None:
    network = untrained(0.0)
    network.mask[0, 0, *PATCH] = 1.0
    random = Randomness(squares=CHOICE)
    against = 1 - float(agrees(torch.sigmoid(network.mask), bright()))
    other = replace(AGREEING, agreement=0.0)
    for price in (1.0, 0.25):
        more = AGREEING(network, bright(), random, price).loss
        less = other(network, bright(), random, price).loss
        assert float(more - less) == pytest.approx(0.5 * price * against, abs=1e-6)


# --- NEM-U ---

NEM_U = Representation(area_weight=0.125, binary_weight=0.25, fill="black")


def test_nem_u_finds_the_patch_that_the_embedding_looks_at() -> None:
    images = bright()
    images[0, 0, *PATCH] = torch.linspace(0.1, 1.0, 8)[:, None]
    area, inside = area_and_overlap(NEM_U, images, 300, PatchEmbedding)
    assert inside > 0.5
    assert area < 1.2 * PATCH_SHARE


class Directions(Patch):
    """Embeddings given beforehand: of the image, of what is kept, of what is removed."""

    def __init__(self, kept: list[float], removed: list[float]) -> None:
        super().__init__(torch.zeros(1, 1, SIDE, SIDE))
        self.given = iter(([1.0, 0.0], kept, removed))

    def logits(self, images: Tensor) -> Tensor:
        return torch.tensor([next(self.given)])


def test_the_regulariser_rewards_kept_and_removed_that_lie_apart() -> None:
    """Section 3.1: B = d(x, kept) - d(kept, removed); and the whole loss, by hand."""

    def loss(kept: list[float], removed: list[float], weight: float = 0.25) -> float:
        network: Any = Directions(kept, removed)
        terms = replace(NEM_U, binary_weight=weight)(network, bright(), EXPECTED, 1.0)
        return float(terms.loss)

    along, across, against = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    area = 0.125 * 0.5
    assert loss(along, against) == pytest.approx(area - 0.25)
    assert loss(along, across) == pytest.approx(area - 0.25 / 2)
    assert loss(along, along) == pytest.approx(area)
    assert loss(across, across) == pytest.approx(area + 0.5 + 0.25 * 0.5)
    assert loss(along, against) < loss(along, across) < loss(along, along)
    assert loss(along, against, 0.0) == pytest.approx(area)


def test_distance_is_half_of_one_less_the_cosine() -> None:
    one = torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    other = torch.tensor([[5.0, 0.0], [0.0, 7.0], [-1.0, 0.0]])
    assert cosine_distance(one, other).tolist() == pytest.approx([0.0, 0.5, 1.0])


# --- on a whole network ---


def softmax_network(explains: OneOf["target", "predicted"]) -> ExplainedNetwork:
    """Three classes that exclude each other; "b" is the target."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        network = ExplainedNetwork(
            replace(
                random_network().architecture,
                outputs=("a", "b", "c"),
                target="b",
                activation="softmax",
                explains=explains,
            )
        )
        head = network.target_model.get_classifier()
        torch.nn.init.normal_(head.weight, std=2.0)
        with torch.no_grad():  # each class is some images' largest
            logits = network.logits(smooth(24))
            head.bias -= logits.mean(dim=0)
            head.weight /= logits.std()
            head.bias /= logits.std()
    return network


def smooth(count: int) -> Tensor:
    coarse = torch.rand(count, 1, 9, 9, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=96, mode="bicubic").clamp(0, 1)


@torch.inference_mode()
def test_the_predicted_output_of_each_image_is_explained_before_and_after() -> None:
    network, images = softmax_network("predicted"), smooth(24)
    predicted = network.logits(images).argmax(dim=1)
    assert len(set(predicted.tolist())) > 1, "the images must differ for this to show"
    mask = torch.zeros_like(images)
    mask[..., 20:70, 10:60] = 1
    terms = of_mask(OBJECTIVE, network, images, mask)
    rows = torch.arange(24)
    before = torch.softmax(network.logits(images), dim=1)[rows, predicted]
    after = torch.softmax(network.logits(images * (1 - mask)), dim=1)[rows, predicted]
    assert torch.allclose(terms.fall, before - after, atol=1e-5)


@torch.inference_mode()
def test_a_fixed_target_is_explained_whatever_is_predicted() -> None:
    network, images = softmax_network("target"), smooth(8)
    mask = torch.zeros_like(images)
    mask[..., 20:70, 10:60] = 1
    terms = of_mask(OBJECTIVE, network, images, mask)
    before = torch.softmax(network.logits(images), dim=1)[:, 1]
    after = torch.softmax(network.logits(images * (1 - mask)), dim=1)[:, 1]
    assert torch.allclose(terms.fall, before - after, atol=1e-5)
    expected = -((before - after).clamp(min=0) ** 2) + 0.5 * mask.mean(dim=(-3, -2, -1))
    assert torch.allclose(terms.loss, expected, atol=1e-5)


@pytest.mark.parametrize("decoder_norm", ["batch", "group"])
@pytest.mark.parametrize(
    "objective",
    [
        *(replace(OBJECTIVE, fill=fill) for fill in ("black", "mean", "blur", "mixed")),
        AGREEING,
        Literal(area_weight=0.5, fill="black", response="probability"),
        NEM_U,
    ],
    ids=["black", "mean", "blur", "mixed", "agreeing", "literal", "nem-u"],
)
def test_gradients_reach_the_explanation_module_only(
    objective: Objective, decoder_norm: Norm
) -> None:
    changes: dict[str, Any] = {"decoder_norm": decoder_norm}
    if isinstance(objective, Representation):
        changes |= {"outputs": (), "target": "representation", "activation": "none"}
        changes |= {"explains": "representation"}
    network = ExplainedNetwork(replace(random_network().architecture, **changes))
    if not isinstance(objective, Representation):
        torch.nn.init.normal_(network.target_model.get_classifier().weight, std=0.3)
    before = {k: v.clone() for k, v in network.target_model.state_dict().items()}
    network.train()
    draws = Draws((1,), np.arange(3))
    random = Randomness(
        kernels=smoothing_kernels(draws, 21, torch.device("cpu")),
        fills=draws.uniform("fill", 1)[:, 0],
        squares=draws.uniform("squares", SQUARE_NUMBERS),
    )
    terms = objective(network, torch.rand(3, 1, 96, 96), random, 1.0)
    assert terms.loss.shape == terms.fall.shape == terms.area.shape == (3,)
    assert not terms.fall.requires_grad
    assert not terms.area.requires_grad
    terms.loss.mean().backward()
    assert all(p.grad is None for p in network.target_model.parameters())
    assert any(float(p.grad.abs().sum()) > 0 for p in network.explanation_module.parameters())
    after = network.target_model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # batch norm statistics too


def test_evidence_follows_the_logit_and_levels_off() -> None:
    log_odds = torch.tensor([-9.0, -6.0, 2.0, 4.0, 6.0], dtype=torch.float64)
    low, floor, two, four, six = respond(log_odds, "evidence").tolist()
    assert floor - low < 0.005
    assert six - four == pytest.approx(2, abs=0.02)
    assert four - two == pytest.approx(2, abs=0.15)
    assert six == pytest.approx(-float(torch.log1p(-torch.sigmoid(log_odds[-1]))))
    assert torch.equal(respond(log_odds, "probability"), torch.sigmoid(log_odds))


def test_the_logit_is_scaled_and_has_no_floor() -> None:
    log_odds = torch.tensor([-9.0, -6.0, 2.0])
    assert respond(log_odds, "logit").tolist() == [x / LOGIT_SCALE for x in (-9.0, -6.0, 2.0)]
    assert LOGIT_SCALE == 4
