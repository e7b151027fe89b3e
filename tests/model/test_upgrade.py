"""A bundle of release 0.2 to 0.7 becomes one of this release, or stays what it was."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nemt_dicom.errors import BundleError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.evaluation_schema2 import from_schema_2
from nemt_dicom.model.manifest import EVALUATION, FILES, MANIFEST
from nemt_dicom.model.upgrade import upgrade
from tests.model.bundle_kit import METRICS, TRAINING, as_schema_2, to_schema_2
from tests.model.test_folder import killed_at


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_old_form_is_refused_with_advice(random_bundle: Bundle, tmp_path: Path) -> None:
    old = as_schema_2(random_bundle, tmp_path / "old")
    with pytest.raises(BundleError, match=rf"nemt-dicom bundle upgrade {old}"):
        Bundle.load(old)


def test_everything_that_explains_stays(random_bundle: Bundle, tmp_path: Path) -> None:
    old = as_schema_2(random_bundle, tmp_path / "old")
    before = content(old)
    upgraded = upgrade(old)
    assert (upgraded.changed, upgraded.figures_lost) == (True, False)
    assert upgraded.bundle == Bundle.load(old)
    assert upgraded.bundle.model_digest == random_bundle.model_digest
    after = content(old)
    assert {name: after[name] for name in FILES} == {name: before[name] for name in FILES}
    assert set(after) == {MANIFEST, EVALUATION, *FILES}
    upgraded.bundle.self_test(upgraded.bundle.network("cpu"))
    assert not upgrade(old).changed
    assert content(old) == after


def test_what_is_said_of_the_training(random_bundle: Bundle, tmp_path: Path) -> None:
    manifest = upgrade(as_schema_2(random_bundle, tmp_path / "old")).bundle.manifest
    training, data = manifest.training, manifest.data
    assert training is not None
    assert data is not None
    assert training.thresholds is None
    assert training.recipe == {"objective": "nemt", "seed": 1}
    assert not training.resumed  # the release that wrote it did not say
    (epoch,) = training.epochs
    assert (epoch.part, epoch.number, epoch.figures) == ("explanation module", 1, {"loss": 0.5})
    parent = training.parent
    assert parent is not None
    assert parent.digest == "a" * 64  # the latest of two
    assert parent.target_model_file is None  # as the first of the two says
    assert parent.epochs[0].figures == {}
    assert data.seen is None


def test_parents_that_were_trained_on_different_data(random_bundle: Bundle, tmp_path: Path) -> None:
    training = copy.deepcopy(TRAINING)
    training["target_model_bundle"]["target_model_bundle"]["data"] = "e" * 64
    old = as_schema_2(random_bundle, tmp_path / "old", training=training)
    upgraded = upgrade(old).bundle.manifest.training
    assert upgraded is not None
    assert upgraded.parent is not None
    assert upgraded.parent.data is None


def test_figures_are_the_same(random_bundle: Bundle, tmp_path: Path) -> None:
    evaluation = upgrade(as_schema_2(random_bundle, tmp_path / "old")).bundle.evaluation
    assert evaluation is not None
    assert evaluation.scope.images == 8
    assert evaluation.checks[0].passed
    assert evaluation.module.scores.faithfulness is not None
    assert evaluation.module.scores.faithfulness.mean == 0.5
    assert evaluation.classifier.batch is not None
    assert evaluation.classifier.batch.mean == 0.1
    assert set(evaluation.auc) == {"all"}  # the other one was not finite
    assert evaluation.randomisation is not None
    assert evaluation.randomisation.layers == ("head",)
    assert evaluation.randomisation.methods["nemt"].cascading == (0.1, None)
    assert evaluation.randomisation.methods["nemt"].independent == (None,)
    assert from_schema_2(to_schema_2(evaluation)) == evaluation


@pytest.mark.parametrize(
    ("metrics", "lost"), [({}, False), ({"auc": {"mean": 0.5}, "methods": {}}, True)]
)
def test_bundles_without_figures_that_can_be_read(
    random_bundle: Bundle, tmp_path: Path, metrics: dict[str, Any], *, lost: bool
) -> None:
    old = as_schema_2(random_bundle, tmp_path / "old", metrics=metrics, training={}, data={})
    upgraded = upgrade(old)
    assert upgraded.figures_lost is lost
    assert upgraded.bundle.evaluation is None
    assert (upgraded.bundle.manifest.training, upgraded.bundle.manifest.data) == (None, None)
    assert set(content(old)) == {MANIFEST, *FILES}


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_damaged_bundle_stays_as_it_is(random_bundle: Bundle, tmp_path: Path, name: str) -> None:
    old = as_schema_2(random_bundle, tmp_path / "old")
    raw = bytearray((old / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (old / name).write_bytes(raw)
    before = content(old)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        upgrade(old)
    assert content(old) == before


def test_what_is_not_of_the_form_stays_as_it_is(random_bundle: Bundle, tmp_path: Path) -> None:
    old = as_schema_2(random_bundle, tmp_path / "old", training={"recipe": {}})
    before = content(old)
    with pytest.raises(BundleError, match="not of the form of schema 2"):
        upgrade(old)
    assert content(old) == before


def test_a_kill_leaves_the_old_bundle_or_the_new_one(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, step = set(), 1
    while True:
        old = as_schema_2(random_bundle, tmp_path / f"{step}")
        if not killed_at(step, monkeypatch, lambda old=old: upgrade(old)):
            break
        kinds.add(json.loads((old / MANIFEST).read_bytes())["schema_version"])
        assert upgrade(old).bundle.evaluation is not None
        assert set(content(old)) == {MANIFEST, EVALUATION, *FILES}
        step += 1
    assert kinds == {2, 3}


def test_metrics_of_the_kit_are_not_changed() -> None:
    from_schema_2(METRICS)
    assert "evaluated" in METRICS
