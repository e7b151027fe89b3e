"""The version of our own code that makes an evaluation's results, for the result store."""

from nemt_dicom.model import decoders, network

from .. import inference, metrics
from . import methods, model_dependence, perturbation, relax, removal, robustness, timing
from .result_store import CodeVersions, sources


def code_versions() -> CodeVersions:
    """What a kept result depends on: the text of every module that takes part in making it."""
    return CodeVersions(
        maps=sources(network, decoders, methods, inference, perturbation, relax),
        scores=sources(network, metrics, removal),
        tests=sources(model_dependence, metrics, robustness, timing, inference),
    )
