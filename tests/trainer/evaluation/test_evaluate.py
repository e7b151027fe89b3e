"""A whole evaluation of a few synthetic images, and what it does with failures and kept results."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemt_dicom.errors import DataError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation import EXPLANATION_MODULE, Evaluation, Figure, Scores
from tests.trainer.bundle_kit import write_bundle
from tests.trainer.synthetic_sets import write_csv_set, write_rsna
from trainer.data.cases import Dataset, find_cases_to_evaluate
from trainer.evaluation.checks import QUESTIONS
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.methods import METHODS, Method, methods
from trainer.evaluation.results import Measured
from trainer.evaluation.settings import MEAN_OF_BOXES, NEMT, SHUFFLED, EvaluationSettings
from trainer.progress import Silent

POSITIVES = 6
QUICK = EvaluationSettings(
    methods=("gradcam++", "random"),
    timing_rounds=1,
    timing_slow_rounds=1,
    timing_batch=2,
    resamples=50,
    rise_masks=20,
    smooth_mask_steps=2,
    gradient_steps=2,
    layer_groups=2,
    removal_steps=4,
    subset=4,
)
"""Few of everything: what is asserted here does not depend on how many."""
SOME = (NEMT, "gradcam++", "centred_blob", "random", MEAN_OF_BOXES)
THOROUGH = QUICK.model_copy(
    update={"methods": SOME, "thorough": True, "quick_seconds": 1e6, "slow_seconds": 1e6}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture(scope="module")
def rsna(folder: Path) -> Path:
    return write_rsna(folder / "rsna", count=4 * POSITIVES)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.load(write_bundle(folder / "bundle"))


def dataset_of(data: Path) -> Dataset:
    return find_cases_to_evaluate(
        [data],
        target="pneumonia",
        split="test",
        photographs=False,
        validation_share=0.15,
        trained_on=("RSNA",),
    )


def measure(
    bundle: Bundle,
    data: Path,
    cache: Path,
    settings: EvaluationSettings = QUICK,
    methods: Mapping[str, Method] | None = None,
    progress: Silent | None = None,
) -> Measured:
    return evaluate(
        bundle,
        dataset_of(data),
        cache,
        device="cpu",
        progress=progress or Silent(),
        settings=settings,
        methods=methods,
    )


@pytest.fixture(scope="module")
def whole(bundle: Bundle, rsna: Path, folder: Path) -> Evaluation:
    """Everything that can be measured, of some methods."""
    return measure(bundle, rsna, folder / "cache", THOROUGH).results


def test_every_method_has_the_papers_figures(bundle: Bundle, rsna: Path, folder: Path) -> None:
    every = QUICK.model_copy(update={"methods": (*METHODS, MEAN_OF_BOXES), "slow_seconds": 1e6})
    results = measure(bundle, rsna, folder / "cache", every).results
    assert set(results.methods) == {*METHODS, SHUFFLED, MEAN_OF_BOXES}
    for method in results.methods.values():
        for name in ("relevance_mass", "relevance_rank", "complexity", "sparseness"):
            figure = getattr(method.scores, name)
            assert figure.lo <= figure.mean <= figure.hi, (method.name, name)
            assert figure.n == method.asked == POSITIVES
        assert method.seconds is not None
        assert method.library
        assert method.settings
        assert method.failed == 0
    assert results.randomisation is None
    assert not results.scope.thorough


def test_a_thorough_evaluation_has_all_figures(whole: Evaluation) -> None:
    assert NEMT == EXPLANATION_MODULE
    assert set(whole.methods) == {*SOME, SHUFFLED}
    for method in whole.methods.values():
        for name in set(Scores.model_fields) - {"area", "faithfulness"}:
            figure = getattr(method.scores, name)
            assert figure is not None, (method.name, name)
            assert figure.lo <= figure.mean <= figure.hi, (method.name, name)
        assert method.scores.road is not None
        assert method.scores.road.n == THOROUGH.subset
        assert {len(curve) for curve in method.curves.values()} == {THOROUGH.removal_steps + 1}
    questions = [check.question for check in whole.checks]
    assert len(questions) == len(set(questions)) == QUESTIONS


def test_all_groups_and_further_tests(whole: Evaluation) -> None:
    assert set(whole.subgroups) == {"view", "sex", "age", "ground truth"}
    counts = [group.images for group in whole.subgroups["ground truth"].values()]
    assert sum(counts) == whole.scope.with_ground_truth == POSITIVES
    assert set(whole.silence) == {"with the target", "without the target", "tiles in random order"}
    assert whole.randomisation is not None
    tested = set(SOME)
    assert set(whole.randomisation.methods) == set(whole.input_invariance) == tested
    assert set(whole.stability) == tested - {"random", MEAN_OF_BOXES}
    assert len(whole.randomisation.methods[NEMT].cascading) == THOROUGH.layer_groups
    assert whole.randomisation.methods["centred_blob"].survives
    assert whole.randomisation.methods["random"].survives
    assert whole.scope.thorough


def test_json_gives_the_same_tree_and_a_bundle_keeps_all_but_curves_and_groups(
    whole: Evaluation,
) -> None:
    text = whole.model_dump_json(exclude_none=True)
    assert Evaluation.model_validate_json(text) == whole
    assert "NaN" not in text
    kept = whole.for_bundle()
    assert not kept.subgroups
    assert not kept.auc_by_subgroup
    assert not any(method.curves for method in kept.methods.values())
    assert kept.module.scores == whole.module.scores


class Stages(Silent):
    """Remembers the stage under way."""

    now = ""

    def stage(self, name: str, total: int) -> None:
        self.now = name


def test_a_second_call_computes_only_what_is_new(
    bundle: Bundle, rsna: Path, tmp_path: Path
) -> None:
    stages, asked = Stages(), []

    def watched(method: Method) -> Method:
        def maps(network: Any, images: Any) -> Any:
            if stages.now == "maps":
                asked.append(method.name)
            return method.maps(network, images)

        return replace(method, maps=maps)

    known = methods(QUICK)
    chosen = {key: watched(known[key]) for key in (NEMT, "rise", "gradcam++")}
    first = measure(bundle, rsna, tmp_path, QUICK, chosen, stages).results
    assert len(asked) == 3 * POSITIVES
    again = measure(bundle, rsna, tmp_path, QUICK, chosen, stages).results
    assert len(asked) == 3 * POSITIVES
    assert again == first  # the seconds, too, are kept
    asked.clear()
    other = methods(QUICK.model_copy(update={"rise_masks": 22}))["rise"]
    measure(bundle, rsna, tmp_path, QUICK, chosen | {"rise": watched(other)}, stages)
    assert asked == ["RISE"] * POSITIVES


@pytest.mark.parametrize("name", ["resamples", "layer_groups"])
def test_further_tests_with_other_settings_are_made_anew(
    bundle: Bundle, rsna: Path, folder: Path, name: str
) -> None:
    few = THOROUGH.model_copy(update={"methods": ("random",)})
    first = measure(bundle, rsna, folder / "cache", few).results.randomisation
    value = {"resamples": 3, "layer_groups": 3}[name]
    other = few.model_copy(update={name: value})
    second = measure(bundle, rsna, folder / "cache", other).results.randomisation
    assert first is not None
    assert second is not None
    if name == "layer_groups":
        assert (len(first.layers), len(second.layers)) == (2, 3)
    else:
        ours, theirs = (r.methods[NEMT].fully_randomised for r in (first, second))
        assert ours is not None
        assert theirs is not None
        assert ours.mean == theirs.mean
        assert (ours.lo, ours.hi) != (theirs.lo, theirs.hi)


def test_a_slow_explanation_module_is_tested_all_the_same(
    bundle: Bundle, rsna: Path, folder: Path
) -> None:
    slow = THOROUGH.model_copy(update={"methods": ("random",), "quick_seconds": 0.0})
    results = measure(bundle, rsna, folder / "cache", slow).results
    assert results.randomisation is not None
    assert set(results.randomisation.methods) == {NEMT}


def test_a_failing_method_is_counted_and_timed_where_it_works(
    bundle: Bundle, rsna: Path, tmp_path: Path
) -> None:
    seen: list[np.ndarray] = []

    def odd(network: Any, images: Any) -> Any:
        for image in images:
            if not any(np.array_equal(image, known) for known in seen):
                seen.append(image)
        row = [np.array_equal(images[0], known) for known in seen].index(True)
        if row % 3 == 1:
            raise RuntimeError("out of luck")
        return images[:, 0] * (np.nan if row % 3 == 2 else 1)

    def never(network: Any, images: Any) -> Any:
        raise ValueError("never works")

    chosen = {NEMT: methods(QUICK)[NEMT]}
    for key, function in (("odd", odd), ("never", never)):
        chosen[key] = Method(name=key, library="", settings="", maps=function)
    results = measure(bundle, rsna, tmp_path, QUICK, chosen).results
    luck, never_works = results.methods["odd"], results.methods["never"]
    assert (luck.asked, luck.failed) == (6, 4)
    assert luck.failures == ("RuntimeError: out of luck", "the map is not finite")
    assert luck.scores.relevance_mass is not None
    assert luck.scores.relevance_mass.n == 2
    assert luck.seconds is not None
    assert never_works.failed == 6
    assert never_works.seconds is None
    assert never_works.scores == Scores()


def test_a_bundle_that_gives_nan_is_refused_in_a_line(
    bundle: Bundle, rsna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = bundle.network("cpu")
    with torch.no_grad():
        network.explanation_module.head.weight.fill_(float("nan"))
    monkeypatch.setattr(Bundle, "network", lambda *_: network)
    with pytest.raises(DataError, match=r"answer to 12 of 12 images is not finite.*image-12\.dcm"):
        measure(bundle, rsna, tmp_path)


def test_positives_that_cannot_be_read_leave_nothing_to_explain(
    bundle: Bundle, tmp_path: Path
) -> None:
    data = write_rsna(tmp_path / "rsna", count=8)
    dataset = dataset_of(data)
    for case in dataset.cases:
        if case.label:
            case.path.write_bytes(b"no image")
    skipping = QUICK.model_copy(update={"skip_bad": True})
    with pytest.raises(DataError, match="no image with 'pneumonia' of the test split can be read"):
        measure(bundle, data, tmp_path / "cache", skipping)


def test_without_ground_truth_all_positives_are_compared(
    bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    data = write_csv_set(folder / "plain", count=12)
    results = measure(bundle, data, tmp_path).results
    assert (results.scope.images, results.scope.with_ground_truth) == (12, 0)
    assert results.truth_share is None
    assert results.module.scores.relevance_mass is None
    assert isinstance(results.module.scores.faithfulness, Figure)
    assert any("all images are evaluated" in note for note in results.scope.notes)


def test_positives_alone_have_maps_and_no_auc(
    bundle: Bundle, rsna: Path, folder: Path, tmp_path: Path
) -> None:
    data = dataset_of(rsna)
    ill = replace(data, cases=tuple(case for case in data.cases if case.label))
    thorough = QUICK.model_copy(update={"thorough": True, "methods": ("random",)})
    results = evaluate(
        bundle, ill, tmp_path, device="cpu", progress=Silent(), settings=thorough
    ).results
    assert results.auc == {}
    assert results.mask_area.negatives is None
    assert results.module.scores.relevance_mass is not None
    assert set(results.silence) == {"with the target", "tiles in random order"}
    well = replace(data, cases=tuple(case for case in data.cases if not case.label))
    with pytest.raises(DataError, match="no image with 'pneumonia', of 6 images"):
        evaluate(bundle, well, tmp_path, device="cpu", progress=Silent(), settings=QUICK)
