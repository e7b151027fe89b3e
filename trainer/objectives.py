"""What the explanation module is trained for: equation (2) of the paper in its deletion form.

    L = -fall(x)^exponent + λ₁ · mean(mask) [+ preservation]
    fall(x) = response(x) - response(x · (1 - mask) + fill · mask)

Printed literally, the paper's equation keeps what the mask marks and charges for it, so that an
empty mask is its minimum; its text ("the smallest input perturbation yielding the largest output
change") and the authors' code mean the form above. The response of the paper is the logit, squared;
the authors' code has the probability, squared.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nemt_dicom.network import ExplainedNetwork, Fill, filled, remove

Response = Literal["probability", "evidence"]


def respond(probability: Tensor, response: Response) -> Tensor:
    """What is compared before and after, of probabilities of the target (B,).

    "probability": p itself. "evidence": softplus(logit(p) + 2) / 4. Where p is near 1 the
    probability hardly moves until most of the evidence is gone, and gives no gradient that says
    where it is; the logit falls with every part of it, but without a floor, so that a mask grows
    to push it ever lower. This response follows the logit and levels off below p = 0.1.
    """
    if response == "probability":
        return probability
    return F.softplus(torch.logit(probability, eps=1e-6) + 2) / 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """The loss of every image of a batch and its parts, each (B,).

    fall: of the probability when the evidence is removed. area: mean of the mask.
    """

    loss: Tensor
    fall: Tensor
    area: Tensor


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """The smallest region whose removal lowers the target's probability most.

    area_weight: λ₁. fill: what takes the place of removed pixels; black as in the paper, the
    image's mean, or its blurred self, which stays closest to a radiograph.
    response: see `respond`. exponent: of the fall. The paper's 2 pays little for a small fall and
    more for each further one, so that a mask is worth most where it covers both lungs; 1 pays for
    each alike. fall_only: reward max(0, fall), so that a rise of the response earns nothing; the
    paper rewards both.
    preservation: weight λ₃ of λ₃ · max(0, response(x) - response(x · mask + fill · (1 - mask)))²,
    which asks that the evidence alone keeps the response; 0 leaves the term out.
    """

    area_weight: float
    fill: Fill
    response: Response
    exponent: float
    fall_only: bool
    preservation: float

    def __call__(self, network: ExplainedNetwork, images: Tensor) -> Terms:
        """Of images (B, 1, S, S) -> loss (B,) with a gradient to the explanation module only."""
        probability, mask = network.explain(images)
        return self.of_mask(network, images, probability, mask)

    def of_mask(
        self, network: ExplainedNetwork, images: Tensor, probability: Tensor, mask: Tensor
    ) -> Terms:
        """The loss of a given mask (B, 1, S, S), 1 = evidence; probability: (B,) of the images."""
        probability = probability.detach()
        before = respond(probability, self.response)
        background = filled(images, self.fill)
        without = network.probability(remove(images, mask, background))
        change = before - respond(without, self.response)
        reward = (change.clamp(min=0) if self.fall_only else change.abs()) ** self.exponent
        area = mask.mean(dim=(-3, -2, -1))
        loss = -reward + self.area_weight * area
        if self.preservation:
            kept = network.probability(remove(images, 1 - mask, background))
            lost = (before - respond(kept, self.response)).clamp(min=0)
            loss = loss + self.preservation * lost**2
        return Terms(loss=loss, fall=(probability - without).detach(), area=area.detach())
