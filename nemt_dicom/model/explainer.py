"""Explains radiographs with a bundle. Each explanation is in the frame of its radiograph."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemt_dicom.config import ExplanationSettings
from nemt_dicom.errors import ConfigError
from nemt_dicom.intake.radiograph import Radiograph
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explanation import Evidence, Explanation
from nemt_dicom.model.network import responses_without_and_with
from nemt_dicom.model.preprocess import Geometry


class Explainer:
    """Explains radiographs with one bundle on one device.

    device: the name that torch gives it.

    Construction replays the bundle's golden image and raises `SelfTestError` if the answer differs.
    """

    def __init__(self, bundle: Bundle, settings: ExplanationSettings) -> None:
        self.bundle = bundle
        self.settings = settings
        self.device = _choose_device(settings)
        if settings.threads and self.device == "cpu":
            torch.set_num_threads(settings.threads)
        self.network = bundle.network(self.device)
        bundle.self_test(self.network)

    @property
    def device_name(self) -> str:
        """The processor, for the start message."""
        if self.device == "cuda":
            return f"cuda ({torch.cuda.get_device_name()})"
        return f"cpu ({torch.get_num_threads()} threads)"

    def explain(self, radiographs: Sequence[Radiograph]) -> list[Explanation]:
        """One explanation for each radiograph, in order, computed as one batch.

        Raises `BadOutput` if the network gives NaN or infinity.
        """
        if not radiographs:
            return []
        prepared = [self.bundle.preprocessing(radiograph) for radiograph in radiographs]
        tensors = torch.from_numpy(np.stack([tensor for tensor, _ in prepared]))
        inside = [
            geometry.inside_valid(radiograph.valid, share=0.5)[None]
            for radiograph, (_, geometry) in zip(radiographs, prepared, strict=True)
        ]
        probability, mask, occluded, kept = self._infer(tensors, torch.from_numpy(np.stack(inside)))
        return [
            self._explanation(
                mask[i, 0].numpy(),
                geometry,
                radiograph.valid,
                Evidence(
                    probability=float(probability[i]),
                    occluded=float(occluded[i]),
                    kept=float(kept[i]),
                ),
            )
            for i, (radiograph, (_, geometry)) in enumerate(zip(radiographs, prepared, strict=True))
        ]

    @torch.inference_mode()
    def _infer(self, tensors: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 1, S, S) -> p (B,), mask (B, 1, S, S), p occluded (B,), p kept (B,).

        inside: bool, False beside the image, on padding and outside the collimation. These places
            are no part of a segment.
        """
        images = tensors.to(self.device)
        probability, mask = self.network.explain(images)
        segment = ((mask >= self.bundle.manifest.mask_threshold) & inside.to(self.device)).float()
        occluded, kept = responses_without_and_with(
            self.network, images, segment, self.bundle.manifest.fill
        )
        return probability.cpu(), mask.cpu(), occluded.cpu(), kept.cpu()

    def _explanation(
        self,
        mask: NDArray[np.float32],
        geometry: Geometry,
        valid: NDArray[np.bool_] | None,
        evidence: Evidence,
    ) -> Explanation:
        in_source = np.clip(geometry.to_source(mask), 0.0, 1.0)  # NaN passes and is refused below
        if valid is not None:
            in_source[~valid] = 0.0
        return Explanation(
            mask=in_source,
            segment=in_source >= self.bundle.manifest.mask_threshold,
            evidence=evidence,
            provenance=self.bundle.provenance,
            explain_below_threshold=self.settings.explain_below_threshold,
        )


def _choose_device(settings: ExplanationSettings) -> str:
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("explanation.device = 'cuda': no CUDA device is here; allowed: auto, cpu")
    return settings.device
