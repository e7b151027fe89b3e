"""What the explanation module is trained for: equation (2) of the paper in its deletion form.

    L = -fall(x)² + λ₁ · mean(mask) [+ preservation]
    fall(x) = response(x) - response(x · (1 - mask) + fill · mask)

The response is the probability of one fixed target, so it is bounded: with a logit the mask grows
until it covers the image. Printed literally, the paper's equation keeps what the mask marks and
charges for it, so that an empty mask is its minimum; its text ("the smallest input perturbation
yielding the largest output change") and the authors' code mean the form above.
"""

from dataclasses import dataclass

from torch import Tensor

from nemt_dicom.network import ExplainedNetwork, Fill, filled, remove


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """The loss of every image of a batch and its parts, each (B,).

    fall: of the response when the evidence is removed, in probability. area: mean of the mask.
    """

    loss: Tensor
    fall: Tensor
    area: Tensor


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """The smallest region whose removal lowers the target's probability most.

    area_weight: λ₁. fill: what takes the place of removed pixels; black as in the paper, the
    image's mean, or its blurred self, which stays closest to a radiograph.
    fall_only: reward max(0, fall)², so that a rise of the response earns nothing; the paper's
    squared difference rewards both.
    preservation: weight λ₃ of λ₃ · max(0, response(x) - response(x · mask + fill · (1 - mask)))²,
    which asks that the evidence alone keeps the response; 0 leaves the term out.
    """

    area_weight: float
    fill: Fill
    fall_only: bool
    preservation: float

    def __call__(self, network: ExplainedNetwork, images: Tensor) -> Terms:
        """Of images (B, 1, S, S) -> loss (B,) with a gradient to the explanation module only."""
        response, mask = network.explain(images)
        return self.of_mask(network, images, response, mask)

    def of_mask(
        self, network: ExplainedNetwork, images: Tensor, response: Tensor, mask: Tensor
    ) -> Terms:
        """The loss of a given mask (B, 1, S, S), 1 = evidence; response: (B,) of the images."""
        response = response.detach()
        background = filled(images, self.fill)
        fall = response - network.probability(remove(images, mask, background))
        reward = (fall.clamp(min=0) if self.fall_only else fall) ** 2
        area = mask.mean(dim=(-3, -2, -1))
        loss = -reward + self.area_weight * area
        if self.preservation:
            kept = network.probability(remove(images, 1 - mask, background))
            loss = loss + self.preservation * (response - kept).clamp(min=0) ** 2
        return Terms(loss=loss, fall=fall.detach(), area=area.detach())
