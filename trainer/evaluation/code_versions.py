"""The version of our own code that makes an evaluation's results, for the result store."""

from nemt_dicom.model import decoders, network

from .. import inference, metrics, statistics
from . import (
    attributions,
    further_tests,
    maps,
    methods,
    model_dependence,
    perturbation,
    relax,
    removal,
    robustness,
    scores,
    subset,
    timing,
)
from .result_store import CodeVersions, sources

MAPS = (network, decoders, inference, attributions, maps, methods, perturbation, relax)
SCORES = (network, decoders, inference, metrics, removal, scores)
TESTS = (
    *MAPS, statistics, metrics, subset, model_dependence, robustness, timing, further_tests,
)  # fmt: skip


def code_versions() -> CodeVersions:
    """What a kept result depends on: the text of every module that takes part in making it."""
    return CodeVersions(maps=sources(*MAPS), scores=sources(*SCORES), tests=sources(*TESTS))
