"""Radiographs in, explanations in their own frames out."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from nemt_dicom.config import ExplanationSettings, InputSettings
from nemt_dicom.errors import BadOutput, ConfigError, SelfTestError
from nemt_dicom.intake.radiograph import UPRIGHT, Radiograph
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.explainer import Explainer
from nemt_dicom.model.explanation import Verdict
from tests.conftest import random_network
from tests.intake import scene
from tests.intake.scene import ORIENTATIONS, Recipe, turned, write

CPU = ExplanationSettings(device="cpu")


@pytest.fixture(scope="module")
def explainer(random_bundle: Bundle) -> Explainer:
    return Explainer(random_bundle, CPU)


def radiograph(seed: int, rows: int, columns: int, orientation: Any = UPRIGHT) -> Radiograph:
    """Smooth random brightness."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, 3, rows)[:, None], np.linspace(0, 3, columns)[None, :]
    pixels = sum(
        rng.random() * np.sin(a * y + b * x + rng.random() * 6) for a in (1, 3) for b in (2, 5)
    )
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    return Radiograph(
        pixels=turned(pixels, orientation).astype(np.float32),
        valid=None,
        orientation=orientation,
        source_kind="dicom",
    )


def with_settings(explainer: Explainer, **changes: Any) -> Explainer:
    """The same network under other thresholds or settings."""
    other = object.__new__(Explainer)
    other.__dict__.update(explainer.__dict__)
    wanted = changes.pop("explain_below_threshold", False)
    other.settings = ExplanationSettings(device="cpu", explain_below_threshold=wanted)
    manifest = explainer.bundle.manifest.model_copy(update=changes)
    other.bundle = replace(explainer.bundle, manifest=manifest)
    return other


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """A plain Gaussian blur, the border repeated, cut off at three standard deviations."""
    reach = int(3 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge")
        image = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    return image.astype(np.float32)


MIXED = [(150, 120, 1), (96, 96, 2), (40, 77, 3), (500, 400, 4), (333, 512, 5)]


def test_batch_of_mixed_sizes_is_one_by_one(explainer: Explainer) -> None:
    radiographs = [
        radiograph(seed, rows, columns, orientation)
        for (rows, columns, seed), orientation in zip(MIXED, ORIENTATIONS[2:], strict=False)
    ]
    together = explainer.explain(radiographs)
    assert len(together) == len(radiographs)
    for source, found in zip(radiographs, together, strict=True):
        (alone,) = explainer.explain([source])
        assert found.mask.shape == found.segment.shape == source.pixels.shape
        assert np.abs(found.mask - alone.mask).max() < 1e-4
        assert (found.segment != alone.segment).mean() < 1e-3
        assert found.evidence.probability == pytest.approx(alone.evidence.probability, abs=1e-5)
        assert found.evidence.occluded == pytest.approx(alone.evidence.occluded, abs=1e-4)
        assert found.evidence.kept == pytest.approx(alone.evidence.kept, abs=1e-4)
    figures = sorted(found.evidence.probability for found in together)
    assert all(b - a > 1e-4 for a, b in pairwise(figures)), "images must differ for this to show"


def test_nothing_gives_nothing(explainer: Explainer) -> None:
    assert explainer.explain([]) == []


def test_explanation_is_the_same_every_time(explainer: Explainer) -> None:
    first, second = (explainer.explain([radiograph(7, 200, 150)])[0] for _ in range(2))
    assert np.array_equal(first.mask, second.mask)
    assert first.evidence == second.evidence


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids="-".join)
def test_mask_follows_the_detector(explainer: Explainer, orientation: Any) -> None:
    (upright,) = explainer.explain([radiograph(3, 150, 110)])
    (found,) = explainer.explain([radiograph(3, 150, 110, orientation)])
    assert np.abs(found.mask - turned(upright.mask, orientation)).max() < 1e-5
    assert found.evidence.probability == pytest.approx(upright.evidence.probability, abs=1e-6)


def test_what_is_not_valid_is_no_part_of_a_segment(explainer: Explainer) -> None:
    """Padding and what lies outside the collimation: in the source, and where p is asked."""
    everything = with_settings(explainer, mask_threshold=0.01)
    source = radiograph(3, 150, 110)
    valid = np.ones(source.pixels.shape, bool)
    valid[90:] = False
    (whole,) = everything.explain([source])
    (found,) = everything.explain([replace(source, valid=valid)])
    assert whole.segment.all()
    assert np.array_equal(found.segment, valid)
    assert not found.mask[~valid].any()
    (nowhere,) = everything.explain([replace(source, valid=np.zeros_like(valid))])
    assert nowhere.evidence.occluded == pytest.approx(nowhere.evidence.probability, abs=1e-5)


def test_same_scene_in_two_files_has_one_explanation(explainer: Explainer) -> None:
    recipes = [
        Recipe(bits=16),
        Recipe(bits=15, photometric="MONOCHROME1", voi="LINEAR", modality="negative"),
    ]
    one, other = explainer.explain(
        [Radiograph.from_dataset(write(recipe), InputSettings()) for recipe in recipes]
    )
    assert one.mask.shape == (scene.ROWS, scene.COLUMNS)
    assert np.abs(one.mask - other.mask).max() < 0.01


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(150, 120), (90, 200)])
@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
def test_figures_are_those_of_a_direct_computation(
    explainer: Explainer, fill: str, shape: tuple[int, int]
) -> None:
    explainer = with_settings(explainer, fill=fill, mask_threshold=0.45)
    source = radiograph(11, *shape)
    (found,) = explainer.explain([source])
    tensor, geometry = explainer.bundle.preprocessing(source)
    image = torch.from_numpy(tensor)[None]
    probability, mask = explainer.network.explain(image)
    segment = (mask >= 0.45) & torch.from_numpy(geometry.inside())
    assert segment.any()
    assert not segment.all()
    if fill == "black":
        background = torch.zeros_like(image)
    elif fill == "mean":
        background = torch.full_like(image, float(image.mean()))
    else:
        background = torch.from_numpy(gaussian(tensor[0], 10 * 96 / 224))[None, None]
    occluded = explainer.network.probability(torch.where(segment, background, image))
    kept = explainer.network.probability(torch.where(segment, image, background))
    assert found.evidence.probability == pytest.approx(float(probability), abs=1e-5)
    assert found.evidence.occluded == pytest.approx(float(occluded), abs=1e-3)
    assert found.evidence.kept == pytest.approx(float(kept), abs=1e-3)
    assert np.abs(found.mask - geometry.to_source(mask[0, 0].numpy())).max() < 1e-5
    assert np.array_equal(found.segment, found.mask >= 0.45)


@torch.inference_mode()
def test_mask_beside_the_image_is_no_part_of_the_segment(explainer: Explainer) -> None:
    """Filling the black beside the image with its mean would change the response by itself."""
    source = radiograph(11, 200, 90)
    tensor, geometry = explainer.bundle.preprocessing(source)
    image = torch.from_numpy(tensor)[None]
    _, mask = explainer.network.explain(image)
    inside = torch.from_numpy(geometry.inside())
    threshold = float(mask[..., ~inside].median())
    (found,) = with_settings(explainer, fill="mean", mask_threshold=threshold).explain([source])
    background = torch.full_like(image, float(image.mean()))

    def occluded(segment: torch.Tensor) -> float:
        return float(explainer.network.probability(torch.where(segment, background, image)))

    right, wrong = occluded((mask >= threshold) & inside), occluded(mask >= threshold)
    assert abs(right - wrong) > 1e-3, "the test could not tell them apart"
    assert found.evidence.occluded == pytest.approx(right, abs=1e-4)


# --- verdicts ---

SOURCE = radiograph(11, 150, 120)


def verdict(explainer: Explainer, **changes: Any) -> tuple[Verdict, bool]:
    """The verdict, and whether something is drawn."""
    (found,) = with_settings(explainer, **changes).explain([SOURCE])
    return found.verdict, bool(found.drawn.any())


def test_explained(explainer: Explainer) -> None:
    assert verdict(explainer) == (Verdict.EXPLAINED, True)


def test_below_threshold(explainer: Explainer) -> None:
    assert verdict(explainer, decision_threshold=1.0) == (Verdict.BELOW_THRESHOLD, False)


def test_explain_below_threshold_draws_all_the_same(explainer: Explainer) -> None:
    found = verdict(explainer, decision_threshold=1.0, explain_below_threshold=True)
    assert found == (Verdict.EXPLAINED, True)


def test_unreliable(explainer: Explainer) -> None:
    assert verdict(explainer, evidence_margin=1.0) == (Verdict.UNRELIABLE, False)
    below = verdict(
        explainer, evidence_margin=1.0, decision_threshold=1.0, explain_below_threshold=True
    )
    assert below == (Verdict.UNRELIABLE, False)


def test_no_region(explainer: Explainer) -> None:
    assert verdict(explainer, mask_threshold=0.999999) == (Verdict.NO_REGION, False)


def test_margin_parts_reliable_from_unreliable(explainer: Explainer) -> None:
    (found,) = explainer.explain([SOURCE])
    fall = found.evidence.fall
    assert verdict(explainer, evidence_margin=fall - 1e-3)[0] is Verdict.EXPLAINED
    assert verdict(explainer, evidence_margin=fall + 1e-3)[0] is Verdict.UNRELIABLE


# --- what must not pass ---


@pytest.mark.parametrize("part", ["mask", "response"])
def test_nan_is_bad_output(random_bundle: Bundle, part: str) -> None:
    explainer = Explainer(random_bundle, CPU)
    if part == "mask":
        torch.nn.init.constant_(explainer.network.explanation_module.head.bias, float("nan"))
    else:
        head = explainer.network.target_model.get_classifier()
        torch.nn.init.constant_(head.bias, float("nan"))
    with pytest.raises(BadOutput):
        explainer.explain([SOURCE])


def test_network_that_answers_otherwise_does_not_start(
    random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "network", lambda *_: random_network(neighbourhood=5))
    with pytest.raises(SelfTestError, match="mask"):
        Explainer(random_bundle, CPU)


def test_device_that_is_not_here(random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"explanation\.device = 'cuda'.*allowed: auto, cpu"):
        Explainer(random_bundle, ExplanationSettings(device="cuda"))
    assert Explainer(random_bundle, ExplanationSettings(device="auto")).device == "cpu"


def test_device_is_named_for_people(explainer: Explainer) -> None:
    assert explainer.device_name.startswith("cpu (")
