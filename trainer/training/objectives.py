"""What the explanation module is trained for.

NEMt (equation (2) of the paper, in its deletion form), for one target or for the predicted output:

    L = -fall^exponent + λ₁ · mean(mask) [+ μ · (1 - agreement with single squares)]
    fall = response(x) - response(x · (1 - mask) + fill · mask)

The last term is beyond the paper; see agreement.py.

Printed literally, (2) keeps what the mask marks and charges for it, so that an empty mask, which
blanks the image, is its minimum; its text ("the smallest input perturbation yielding the largest
output change") and the authors' code mean the form above. `Literal` is the printed form, kept for
the ablation.

NEM-U (equation (1) and its regulariser), for a representation:

    L = d(Φ(x), Φ(kept)) + λ₁ · mean(mask) + λ₂ · B
    B = d(Φ(x), Φ(kept)) - d(Φ(kept), Φ(removed)),    d = (1 - cosine) / 2

kept = x · mask + fill · (1 - mask), removed = x · (1 - mask) + fill · mask. In all of them 1 in the
mask is evidence, and λ₁ does not depend on the image's size, for the norm is a mean.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from nemt_dicom.model.network import ExplainedNetwork, filled, remove

from .agreement import agreement_with_squares
from .recipe import Response, TrainingFill

LOGIT_SCALE = 4.0
"""Divides the log odds of the response "logit": without it λ₁ = 1/2 is no price at all."""


def respond(log_odds: Tensor, response: Response) -> Tensor:
    """What is compared before and after, of log odds of the target (B,).

    "probability": p, as in the authors' code. "logit": the log odds divided by LOGIT_SCALE, as in
    the paper; it has no floor, so that a mask grows to push it ever lower. "evidence":
    softplus(log odds), which is -log(1 - p). Where p is near 1 the probability hardly moves until
    most of the evidence is gone, and gives no gradient that says where it is; this follows the log
    odds, and levels off below even odds: there is nothing to explain.
    """
    if response == "probability":
        return torch.sigmoid(log_odds)
    if response == "logit":
        return log_odds / LOGIT_SCALE
    return F.softplus(log_odds)


def fill_of(images: Tensor, fill: TrainingFill, choice: Tensor | None) -> Tensor:
    """What takes the place of removed pixels, (B, C, S, S).

    choice: (B,) in [0, 1), which of the three each image meets if the fill is "mixed"; None: blur
        for all.
    """
    if fill != "mixed":
        return filled(images, fill)
    if choice is None:
        return filled(images, "blur")
    third = choice.view(-1, 1, 1, 1)
    grey = torch.where(third < 1 / 3, filled(images, "black"), filled(images, "mean"))
    return torch.where(third < 2 / 3, grey, filled(images, "blur"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Randomness:
    """What a training step draws for each image; none of it in validation.

    kernels: smoothing kernels (B, side, side).
    fills: (B,) in [0, 1), see `fill_of`.
    squares: (B, SQUARE_NUMBERS) in [0, 1), see `agreement.squares`.
    """

    kernels: Tensor | None = None
    fills: Tensor | None = None
    squares: Tensor | None = None


EXPECTED = Randomness()
"""Nothing is random: smoothing by its expectation, squares on a grid."""


def expected(fill: TrainingFill, images: Tensor) -> list[Randomness]:
    """What a loss without randomness is the mean over: each fill that training may draw."""
    if fill != "mixed":
        return [EXPECTED]
    thirds = (1 / 6, 1 / 2, 5 / 6)
    return [Randomness(fills=torch.full((len(images),), t, device=images.device)) for t in thirds]


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """The loss of every image of a batch and its parts, each (B,).

    fall: how far p falls if the evidence is removed; for NEM-U, how far the cosine similarity
        falls.
    area: mean of the mask.
    """

    loss: Tensor
    fall: Tensor
    area: Tensor


Objective = Callable[[ExplainedNetwork, Tensor, Randomness, float], Terms]
"""(network, images (B, C, S, S), what is random, share of λ₁ and μ charged) -> loss (B,) with a
gradient to the explanation module only."""


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """The smallest region whose removal lowers the response most; equation (2).

    The network's `explains` says whether that is the target's response or the predicted output's.

    area_weight: λ₁, price of a mask of the whole image.
    fill: what takes the place of removed pixels: black as in the paper, the image's mean, or its
        blurred self, which stays closest to a radiograph.
    response: see `respond`.
    exponent: power of the fall. The paper's 2 pays little for a small fall and more for each
        further one, so that a mask is worth most if it covers both lungs; 1 pays for each alike.
    fall_only: reward max(0, fall), so that a rise of the response earns nothing; the paper rewards
        both.
    agreement: μ, weight of the served mask following what single squares matter; 0: off.
    scale: what the response is divided by; 1 in the paper. With its mean on training positives λ₁
        is the share of the response that a mask of the whole image has to earn, whichever the
        classifier.
    """

    area_weight: float
    fill: TrainingFill
    response: Response
    exponent: float
    fall_only: bool
    agreement: float = 0.0
    scale: float = 1.0

    def __call__(
        self, network: ExplainedNetwork, images: Tensor, random: Randomness, price: float
    ) -> Terms:
        """See `Objective`."""
        logits, mask, weighed = network(images, random.kernels)
        background = fill_of(images, self.fill, random.fills)
        terms = self.of_mask(network, images, logits, mask, background, price)
        if not self.agreement:
            return terms
        agreement = agreement_with_squares(
            network,
            images,
            logits,
            weighed,
            random.squares,
            response=lambda log_odds: respond(log_odds, self.response),
        )
        return replace(terms, loss=terms.loss + price * self.agreement * (1 - agreement))

    def of_mask(
        self,
        network: ExplainedNetwork,
        images: Tensor,
        logits: Tensor,
        mask: Tensor,
        background: Tensor,
        price: float = 1.0,
    ) -> Terms:
        """The loss of a mask (B, 1, S, S), 1 = evidence. logits: (B, outputs) of the images.

        background: what takes the place of removed pixels. The output is the same before and
        after: the one explained of the whole image.
        """
        logits = logits.detach()
        index = network.explained_index(logits)
        whole = network.log_odds(logits, index)
        without = network.log_odds(network.logits(remove(images, mask, background)), index)
        change = (respond(whole, self.response) - respond(without, self.response)) / self.scale
        reward = (change.clamp(min=0) if self.fall_only else change.abs()) ** self.exponent
        area = mask.float().mean(dim=(-3, -2, -1))
        loss = -reward + price * self.area_weight * area
        fall = torch.sigmoid(whole) - torch.sigmoid(without)
        return Terms(loss=loss, fall=fall.detach(), area=area.detach())


@dataclass(frozen=True, kw_only=True)
class Literal:
    """Equation (2) as it is printed: the mask keeps, and what it keeps is charged.

    Its minimum is the empty mask. Only for the ablation, which shows that.
    """

    area_weight: float
    fill: TrainingFill
    response: Response

    def __call__(
        self, network: ExplainedNetwork, images: Tensor, random: Randomness, price: float
    ) -> Terms:
        """See `Objective`."""
        logits, mask, _ = network(images, random.kernels)
        index = network.explained_index(logits)
        whole = network.log_odds(logits.detach(), index)
        only = remove(images, 1 - mask, fill_of(images, self.fill, random.fills))
        kept = network.log_odds(network.logits(only), index)
        change = respond(whole, self.response) - respond(kept, self.response)
        area = mask.float().mean(dim=(-3, -2, -1))
        loss = -(change**2) + price * self.area_weight * area
        fall = torch.sigmoid(whole) - torch.sigmoid(kept)
        return Terms(loss=loss, fall=fall.detach(), area=area.detach())


@dataclass(frozen=True, kw_only=True)
class Representation:
    """The smallest region that alone keeps the embedding where it is; equation (1), NEM-U.

    area_weight: λ₁, 1/8 in the paper.
    binary_weight: λ₂ of the regulariser B, 1/4 in the paper. B pushes kept and removed apart, and
        so the mask to 0 or 1.
    """

    area_weight: float
    binary_weight: float
    fill: TrainingFill

    def __call__(
        self, network: ExplainedNetwork, images: Tensor, random: Randomness, price: float
    ) -> Terms:
        """See `Objective`."""
        embedding, mask, _ = network(images, random.kernels)
        embedding = embedding.detach()
        background = fill_of(images, self.fill, random.fills)
        kept = network.logits(remove(images, 1 - mask, background))
        removed = network.logits(remove(images, mask, background))
        moved = cosine_distance(embedding, kept)
        binary = moved - cosine_distance(kept, removed)
        area = mask.float().mean(dim=(-3, -2, -1))
        loss = moved + price * self.area_weight * area + self.binary_weight * binary
        fall = 2 * cosine_distance(embedding, removed)
        return Terms(loss=loss, fall=fall.detach(), area=area.detach())


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """(1 - cosine) / 2 of embeddings (B, D) -> (B,) in [0, 1]: the paper's d, shifted."""
    return (1 - F.cosine_similarity(first.float(), second.float(), dim=1)) / 2
