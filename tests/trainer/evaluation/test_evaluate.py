"""`nemt-eval` as a user calls it, on a few synthetic images: reports, the cache, bad input, bundles
that are broken, and what comes of it in bundle and service.
"""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemt_dicom import cli as service
from nemt_dicom.config import Settings
from nemt_dicom.model.bundle import Bundle, save
from nemt_dicom.pipeline import PipelineEngine
from tests.conftest import description_of, random_network, write_manifest
from tests.trainer.synthetic_sets import write_csv_set, write_ham, write_nih, write_rsna
from tests.trainer.training_kit import quick
from trainer.cli import main as train
from trainer.eval_cli import main
from trainer.evaluation import maps, perturbation, result_store, thorough
from trainer.evaluation import methods as baselines
from trainer.evaluation import model_dependence as dependence
from trainer.evaluation.checks import QUESTIONS, checks, verdict
from trainer.evaluation.code_versions import code_versions
from trainer.evaluation.decisions import mask_areas
from trainer.evaluation.methods import METHODS, Method
from trainer.evaluation.result_store import ResultStore
from trainer.evaluation.scores import Evaluated, methods_table, scores
from trainer.evaluation.settings import NEMT
from trainer.progress import Silent

FILES = {
    "report.html", "report.md", "metrics.csv", "summary.json", "bars.png", "panels.png",
    "worst.png", "curves.png", "randomisation.png",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RISE_MASKS", 60)
    monkeypatch.setattr(perturbation, "STEPS", 5)
    monkeypatch.setattr(dependence, "GROUPS", 2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    write_rsna(folder / "rsna", count=64)
    return folder


@pytest.fixture(scope="module")
def bundle(sets: Path) -> Path:
    out = sets / "bundle"
    options = [
        *quick(target_model={"epochs": 2}), "--target", "pneumonia",
        "--data", str(sets / "rsna"), "--out", str(out),
    ]  # fmt: skip
    assert train(options) == 0
    return out


def call(bundle: Path, data: Path, out: Path, *options: str) -> int:
    return main(["--bundle", str(bundle), "--data", str(data), "--out", str(out), *options])


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def whole(sets: Path, bundle: Path) -> Path:
    """A report with everything in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "RISE_MASKS", 60)
        patch.setattr(perturbation, "STEPS", 5)
        patch.setattr(dependence, "GROUPS", 2)
        assert call(bundle, sets / "rsna", sets / "report") == 0
    return sets / "report"


def test_all_methods_with_all_figures(whole: Path) -> None:
    found = summary(whole)
    assert {path.name for path in whole.iterdir()} == FILES
    assert set(found["methods"]) == {*METHODS, "shuffled_module", "mean_of_boxes"}
    for row in found["methods"].values():
        for name in ("relevance_mass", "relevance_rank", "complexity", "sparseness", "seconds",
                     "seconds_in_batch", "deletion_black", "insertion_blur", "road", "iou",
                     "pointing_game"):  # fmt: skip
            assert row[name]["lo"] <= row[name]["mean"] <= row[name]["hi"], name
            assert row[name]["n"] >= 1
        assert row["library"]
        assert row["failed"] == 0
    assert {"view", "sex", "age", "ground truth"} == set(found["subgroups"])
    counts = [group["images"] for group in found["subgroups"]["ground truth"].values()]
    assert sum(counts) == found["evaluated"]["with_ground_truth"] == 16
    assert {"with the target", "without the target", "tiles in random order"} == set(
        found["silence"]
    )
    questions = [check["question"] for check in found["checks"]]
    assert len(questions) == len(set(questions)) == QUESTIONS
    assert found["verdict"].startswith(("PASS", "FAIL"))


@pytest.mark.parametrize("key", [NEMT, "other"])
def test_a_module_that_fails_on_a_randomised_model_has_not_passed(key: str) -> None:
    network = Bundle.load().network("cpu")
    images = np.zeros((1, 1, 224, 224), np.float32)

    def maps(asked: Any, images: Any) -> Any:
        if asked is not network:
            raise RuntimeError("fails")
        return np.zeros((1, 224, 224), np.float32)

    methods = {key: Method(name="x", library="", settings="", maps=maps)}
    if key == NEMT:
        with pytest.raises(RuntimeError, match="fails"):
            dependence.randomisation(network, methods, images, ["a"], Silent())
    else:
        found = dependence.randomisation(network, methods, images, ["a"], Silent())
        assert found[key]["fully_randomised"] is None


def test_what_ignores_the_model_fails_its_randomisation(whole: Path) -> None:
    found = summary(whole)["randomisation"]
    assert found["centred_blob"]["survives"]
    assert found["centred_blob"]["fully_randomised"]["mean"] == 1
    assert found["random"]["survives"]
    assert not found["nemt"]["survives"]
    assert len(found["nemt"]["cascading"]) == len(found["nemt"]["independent"]) == 2
    assert "**FAILS: survives**" in (whole / "report.md").read_text("utf-8")


def test_input_invariance_tells_those_that_see_the_shift(whole: Path) -> None:
    methods = {key: METHODS[key] for key in ("nemt", "gradcam++", "integrated_gradients")}
    assert set(methods) <= set(summary(whole)["input_invariance"])
    coarse = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1).numpy()
    network = random_network()
    with torch.no_grad():  # an output that every feature speaks for: no class activation map is 0
        network.target_model.get_classifier().weight.abs_()
    found = dependence.input_invariance(network, methods, images, list("abcd"), Silent())
    assert found["nemt"]["mean"] == pytest.approx(1, abs=1e-3)
    assert found["gradcam++"]["mean"] == pytest.approx(1, abs=1e-3)
    assert found["integrated_gradients"]["mean"] < 0.99


def test_the_table_of_images(whole: Path) -> None:
    with (whole / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 * (len(METHODS) + 2)
    ours = [float(row["relevance_mass"]) for row in rows if row["method"] == "nemt"]
    mean = summary(whole)["methods"]["nemt"]["relevance_mass"]["mean"]
    assert np.mean(ours) == pytest.approx(mean, abs=1e-4)


def test_the_report_is_one_file_that_needs_no_network(whole: Path) -> None:
    text = (whole / "report.html").read_text("utf-8")
    assert text.count("data:image/png;base64,") == 5
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert "<table>" in text
    for title in ("Methods compared", "Removal", "Does it depend on the model?",
                  "Label randomisation", "Subgroups"):  # fmt: skip
        assert title in text


def test_a_second_call_computes_only_what_is_new(
    sets: Path, bundle: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(method: Method) -> Method:
        def found(network: Any, images: Any) -> Any:
            asked.append(method.name)
            return method.maps(network, images)

        return Method(
            name=method.name, library=method.library, settings=method.settings, maps=found
        )

    rise = METHODS["rise"]
    for key in ("nemt", "rise", "gradcam++"):
        monkeypatch.setitem(METHODS, key, watched(METHODS[key]))
    monkeypatch.setattr("trainer.evaluation.evaluate.time_methods", _no_time)
    out = sets / "again"
    options = ["--quick", "--methods", "rise,gradcam++"]
    assert call(bundle, sets / "rsna", out, *options) == 0
    assert asked == []
    first, second = summary(whole)["methods"], summary(out)["methods"]
    for key in ("nemt", "rise", "gradcam++"):
        for name in ("relevance_mass", "faithfulness"):
            assert first[key][name] == second[key][name]
    assert call(bundle, sets / "rsna", out, *options) == 1  # it is there
    assert call(bundle, sets / "rsna", out, *options, "--resume") == 0
    monkeypatch.setitem(METHODS, "rise", watched(_other_settings(rise)))
    assert call(bundle, sets / "rsna", out, *options, "--resume") == 0
    assert asked == ["RISE"] * 16


def _other_settings(method: Method) -> Method:
    return Method(name=method.name, library="", settings="other masks", maps=method.maps)


def _no_time(network: Any, methods: dict[str, Method], *_: Any) -> dict[str, Any]:
    one = {"seconds": {"mean": 0.1, "lo": 0.1, "hi": 0.1, "n": 1}}
    return dict.fromkeys([*methods, "target_model"], one)


def test_a_slow_method_sees_the_subset_and_the_table_says_so(
    sets: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, gradcam = [0.0], METHODS["gradcam"]

    def takes_a_second(*arguments: Any) -> Any:
        clock[0] += 1.0
        return gradcam.maps(*arguments)

    slow = replace(gradcam, settings="slow", maps=takes_a_second)  # whose maps are not kept yet
    monkeypatch.setitem(METHODS, "gradcam", slow)
    monkeypatch.setattr(maps, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(maps, "SLOW", 0.5)
    monkeypatch.setattr(maps, "SUBSET", 5)
    monkeypatch.setattr("trainer.evaluation.evaluate.time_methods", _no_time)
    out = sets / "slow"
    given = ("--quick", "--methods", "gradcam,random")
    assert call(bundle, sets / "rsna", out, *given) == 0
    counts = {key: row["relevance_mass"]["n"] for key, row in summary(out)["methods"].items()}
    assert counts == {"nemt": 16, "gradcam": 5, "random": 16, "shuffled_module": 16}
    assert (out / "report.md").read_text("utf-8").count("| GradCAM, 5 of 16 images |") == 1
    monkeypatch.setattr(maps, "SLOW", 1.5)
    assert call(bundle, sets / "rsna", out, *given, "--resume") == 0
    assert summary(out)["methods"]["gradcam"]["relevance_mass"]["n"] == 16
    assert "of 16 images |" not in (out / "report.md").read_text("utf-8")


def test_u_relax_is_as_slow_as_relax(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the subset RELAX has done its work already."""
    network = Bundle.load(bundle).network("cpu")
    monkeypatch.setitem(baselines.RELAX_MASKS, "cpu", 20)
    methods = baselines.for_representations("cpu")
    clock, relax = [0.0], methods["relax"]

    def takes_a_second(*arguments: Any) -> Any:
        clock[0] += 1.0
        return relax.maps(*arguments)

    methods["relax"] = replace(relax, maps=takes_a_second)
    monkeypatch.setattr(maps, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(maps, "SLOW", 0.5)
    monkeypatch.setattr(maps, "SUBSET", 3)
    images = np.random.default_rng(0).random((6, 1, 64, 64), np.float32)
    found = maps.attribute(network, methods, images, None, Silent())
    assert {key: len(a.found) for key, a in found.items()} == {
        "nemt": 6, "relax": 3, "u_relax": 3, "centred_blob": 6, "random": 6,
    }  # fmt: skip


def test_relax_of_another_network_is_not_the_last_ones(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(baselines.RELAX_MASKS, "cpu", 50)
    network = Bundle.load(bundle).network("cpu")
    other = dependence.randomised(
        network, [name for name, _ in network.target_model.named_children()]
    )
    images = np.random.default_rng(0).random((2, 1, 64, 64), np.float32)
    for key in ("relax", "u_relax"):
        method = baselines.for_representations("cpu")[key]
        first = method.maps(network, images)
        assert not np.allclose(first, method.maps(other, images))
        assert np.array_equal(first, method.maps(network, images))


def test_a_resample_without_a_label_says_nothing_of_areas() -> None:
    cases = [SimpleNamespace(label=int(i < 3)) for i in range(30)]
    examples: Any = SimpleNamespace(
        labels=np.array([case.label for case in cases], np.float32),
        patients=tuple(str(i) for i in range(30)),
    )
    masks = np.full((30, 4, 4), 0.1, np.float32)
    masks[:3] = 0.4
    found = mask_areas(examples, masks)["negatives_over_positives"]
    assert (found["mean"], found["lo"], found["hi"]) == pytest.approx((0.25, 0.25, 0.25))


def test_a_slow_explanation_module_is_tested_all_the_same(
    sets: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thorough, "QUICK", 0.0)
    out = sets / "slow-module"
    assert call(bundle, sets / "rsna", out, "--methods", "random") == 0
    assert {*summary(out)["randomisation"]} == {"nemt", "layers"}


def test_a_failing_method_is_counted_not_hidden(
    sets: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"odd": 0}

    def odd(network: Any, images: Any) -> Any:
        calls["odd"] += 1
        if calls["odd"] % 4 == 1:
            raise RuntimeError("out of luck")
        return images[:, 0] * (np.nan if calls["odd"] % 4 == 2 else 1)

    def never(network: Any, images: Any) -> Any:
        raise ValueError("never works")

    for key, function in (("gradcam", odd), ("hirescam", never)):
        method = Method(name=key, library="", settings=str(calls), maps=function)
        monkeypatch.setitem(METHODS, key, method)
    monkeypatch.setattr("trainer.evaluation.evaluate.time_methods", _no_time)
    out = sets / "failing"
    assert call(bundle, sets / "rsna", out, "--quick", "--methods", "gradcam,hirescam") == 0
    rows = summary(out)["methods"]
    assert rows["gradcam"]["failed"] == 8
    assert rows["gradcam"]["relevance_mass"]["n"] == 8
    assert rows["gradcam"]["failures"] == ["RuntimeError: out of luck", "the map is not finite"]
    assert rows["hirescam"]["failed"] == 16
    text = (out / "report.md").read_text("utf-8")
    assert "gradcam, failed on 8" in text
    assert "ValueError: never works" in text
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        failed = [row for row in csv.DictReader(file) if row["failed"]]
    assert len(failed) == 24


def test_two_bundles_against_each_other(sets: Path, bundle: Path) -> None:
    other = shuffled(bundle, sets / "shuffled")
    out = sets / "compared"
    arguments = ["compare", str(bundle), str(other), "--data", str(sets / "rsna")]
    assert main([*arguments, "--out", str(out)]) == 0
    found = json.loads((out / "compare.json").read_text("utf-8"))["methods"]["relevance_mass"]
    assert found["b_less_a"]["mean"] == pytest.approx(
        found["b"]["mean"] - found["a"]["mean"], abs=2e-4
    )
    assert found["b_less_a"]["n"] == 16
    assert "B less A" in (out / "compare.html").read_text("utf-8")


def shuffled(bundle: Path, out: Path) -> Path:
    """The bundle with the weights of its explanation module in a random order."""
    found = Bundle.load(bundle)
    network = found.network("cpu")
    generator = torch.Generator().manual_seed(0)
    for p in network.explanation_module.parameters():
        order = torch.randperm(p.numel(), generator=generator)
        p.data = p.data.flatten()[order].view_as(p)
    save(out, network, description_of(found), "# Broken\n")
    return out


def test_figures_go_into_bundle_and_card_and_the_service_wants_them(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    copy = sets / "copy"
    shutil.copytree(bundle, copy)
    found = Bundle.load(copy)
    save(copy, found.network("cpu"), description_of(found), "# No figures\n")
    assert service.main(["bundle", "show", str(copy)]) == 0
    assert "Never evaluated" in capsys.readouterr().out
    settings = Settings.model_validate({"explanation": {"bundle": str(copy), "device": "cpu"}})
    PipelineEngine(settings)
    assert "says nothing of how good its explanations are" in caplog.text
    caplog.clear()

    options = ["--methods", "gradcam++,random", "--into-bundle"]
    assert call(copy, sets / "rsna", sets / "published", *options) == 0
    written = Bundle.load(copy)
    assert written.evaluation is not None
    assert written.evaluation.module.scores.road is not None
    assert written.evaluation.module.scores.road.n == 16
    assert not written.evaluation.module.curves
    assert (written.digest, written.model_digest) != (found.digest, found.model_digest)
    assert written.model_digest == found.model_digest
    card = (copy / "MODEL_CARD.md").read_text("utf-8")
    for text in ("By `nemt-eval`", "GradCAM++", "Dependence on the model", "Silence", "ROAD ↑"):
        assert text in card
    assert written.manifest.data is not None
    counts = written.manifest.data.splits["RSNA test"]
    row = (counts.images, counts.positives, counts.patients)
    assert row[1] < row[2]
    assert "| split | images | positives | patients |" in card
    assert "| RSNA test | {} | {} | {} |".format(*row) in card
    capsys.readouterr()
    assert service.main(["bundle", "show", str(copy)]) == 0
    shown = capsys.readouterr().out
    assert "faithfulness" in shown
    assert "does it depend on the model?" in shown
    PipelineEngine(settings)
    assert "says nothing" not in caplog.text


# --- which images ---


def test_all_images_where_no_table_places_any(sets: Path, bundle: Path) -> None:
    write_csv_set(sets / "plain", count=12)
    out = sets / "all"
    assert call(bundle, sets / "plain", out, "--quick", "--methods", "random") == 0
    found = summary(out)
    assert found["evaluated"]["images"] == 12
    assert found["evaluated"]["with_ground_truth"] == 0
    assert "relevance_mass" not in found["methods"]["nemt"]
    assert "faithfulness" in found["methods"]["nemt"]
    assert any("all images are evaluated" in note for note in found["evaluated"]["notes"])
    assert "no ground truth of where to look" in (out / "report.md").read_text("utf-8")


def test_of_data_like_the_bundles_own_only_those_held_out(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without splits.csv the trainer places patients by a hash: so does the evaluation."""
    shutil.copytree(sets / "rsna", sets / "unplaced")
    (sets / "unplaced" / "splits.csv").unlink()
    out = sets / "held-out"
    assert call(bundle, sets / "unplaced", out, "--quick", "--methods", "random") == 1
    assert "are training or validation patients" in capsys.readouterr().err  # it had splits.csv
    former = sets / "former"  # had none, and was made before bundles kept whom they have seen
    shutil.copytree(bundle, former)
    content = Bundle.load(former).manifest.model_dump(mode="json")
    content["data"]["seen"] = None
    write_manifest(former, content)
    assert call(former, sets / "unplaced", out, "--quick", "--methods", "random", "--resume") == 0
    found = summary(out)["evaluated"]
    assert any("keeps no record of the patients" in note for note in found["notes"])
    assert 0 < found["images"] < 40
    assert any("stable hash" in note for note in found["notes"])


def test_twins_of_training_images_are_no_test_images(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RSNA's images are NIH's: where no table tells whom a bundle of RSNA's saw, all data must."""
    nih = write_nih(sets / "nih-unplaced", count=24)
    table = nih / "Data_Entry_2017_v2020.csv"
    rows = [line.rpartition(",")[0] for line in table.read_text("utf-8").splitlines()]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")  # without the column split
    out = sets / "twins"
    assert call(bundle, nih, out, "--quick", "--methods", "random") == 1
    assert "name those of RSNA, too" in capsys.readouterr().err


def test_an_unreadable_image_is_named_and_only_left_out_where_asked(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = sets / "damaged"
    shutil.copytree(sets / "rsna", damaged)
    (damaged / "stage_2_train_images" / "image-63.dcm").write_bytes(b"no image")
    given = ("--quick", "--methods", "random")
    assert call(bundle, damaged, sets / "damaged-1", *given) == 1
    assert "image-63.dcm" in capsys.readouterr().err
    assert call(bundle, damaged, sets / "damaged-2", *given, "--skip-bad") == 0
    found = summary(sets / "damaged-2")["evaluated"]
    assert found["unreadable"] == 1
    assert any("1 images could not be read" in note for note in found["notes"])
    assert "image-63.dcm" in (sets / "damaged-2" / "report.md").read_text("utf-8")


def test_positives_alone_have_maps_and_no_auc(sets: Path, bundle: Path) -> None:
    one_class(sets / "rsna", sets / "ill", "1")
    out = sets / "ill-report"
    assert call(bundle, sets / "ill", out, "--methods", "random") == 0
    found = summary(out)
    assert found["auc"] == {}
    assert "negatives" not in found["mask_area"]
    assert found["methods"]["nemt"]["relevance_mass"]["n"] == 16


def one_class(folder: Path, out: Path, label: str) -> Path:
    shutil.copytree(folder, out)
    path = out / "stage_2_train_labels.csv"
    lines = path.read_text("utf-8").splitlines()
    kept = [line for line in lines[1:] if line.endswith(f",{label}")]
    path.write_text("\n".join([lines[0], *kept]) + "\n", encoding="utf-8")
    return out


def test_what_cannot_be_evaluated_says_why(
    sets: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sets / "empty").mkdir()
    write_ham(sets / "ham", count=14)
    write_csv_set(sets / "photographs", count=6, kind="photograph")
    write_nih(sets / "nih", count=8)
    well = one_class(sets / "rsna", sets / "well", "0")
    rsna = sets / "rsna"
    for data, options, message in (
        (sets / "empty", [], "holds no labels that are recognised"),
        (sets / "nowhere", [], "does not exist"),
        (sets / "ham", [], "holds photographs, and the bundle was trained on radiographs"),
        (sets / "photographs", [], "holds photographs, and the bundle was trained on radiographs"),
        (well, [], "has no image with 'pneumonia', of 16 images: there is nothing to explain"),
        (rsna, ["--methods", "gradcam,lime"], "--methods: lime is not known for this bundle"),
        (rsna, ["--split", "validation", "--into-bundle"], "figures of the test split only"),
    ):
        assert call(bundle, data, sets / "nothing", *options, "--resume") == 1, message
        assert message in capsys.readouterr().err
    assert main(["--bundle", str(sets / "empty"), "--data", str(rsna), "--out", "x"]) == 1
    assert "this is not a whole bundle" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--out", "x"])
    assert ended.value.code == 2


def test_a_result_cut_off_is_computed_again(sets: Path, bundle: Path, whole: Path) -> None:
    from trainer.data.examples import default_cache

    store = ResultStore(default_cache(), Bundle.load(bundle), "cpu", code_versions())
    store.save({"score": np.array(0.5)}, "kind", "of")
    assert float(store.load("kind", "of")["score"]) == 0.5  # type: ignore[index]
    path = store._path(("kind", "of"))
    path.write_bytes(path.read_bytes()[:40])
    assert store.load("kind", "of") is None
    assert store.load("kind", "other") is None
    assert ResultStore(default_cache(), Bundle.load(bundle), "cuda").load("kind", "of") is None


@pytest.mark.parametrize("library", ["torch", "timm", "quantus", "grad-cam", "captum", "numpy"])
def test_another_version_of_a_library_computes_anew(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    def compute() -> dict[str, Any]:
        computed.append(library)
        return {}

    computed: list[str] = []
    known = result_store.version
    for newer in ("", "", library):
        monkeypatch.setattr(
            result_store, "version", lambda name, newer=newer: known(name) + "1" * (name == newer)
        )
        ResultStore(tmp_path, Bundle.load(bundle), "cpu").remember(compute, "kind")
    assert len(computed) == 2


def test_the_code_of_every_method_is_part_of_what_is_kept() -> None:
    methods = {**METHODS, **baselines.for_representations("cpu")}.values()
    named = (baselines.mean_of_boxes([np.ones((2, 2), bool)]), baselines.shuffled_module())
    code = {method.maps.__module__ for method in (*methods, *named)}
    assert code <= {module.__name__ for module in result_store.OF_MAPS}


def test_weights_are_part_of_what_is_kept(sets: Path, bundle: Path) -> None:
    from trainer.data.examples import default_cache

    other = sets / "other-weights"
    shutil.copytree(bundle, other)
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 0.9 for k, v in weights.items()}, other / "model.safetensors")
    found = Bundle.load(bundle)
    network = found.network("cpu")
    network.explanation_module.load_state_dict(
        {k: v * 0.9 for k, v in network.explanation_module.state_dict().items()}
    )
    save(other, network, description_of(found), "# Other\n")
    stores = [ResultStore(default_cache(), Bundle.load(b), "cpu") for b in (bundle, other)]
    stores[0].save({"score": np.array(1)}, "weights")
    assert stores[1].load("weights") is None


def test_the_summary_line() -> None:
    good = {"question": "does it?", "passed": True, "figure": "1"}
    bad = {"question": "is it?", "passed": False, "figure": "0.1"}
    assert verdict([good] * QUESTIONS) == "PASS: 7 of 7 checks pass"
    assert verdict([good]) == "PASS: 1 of 1 checks pass, 6 could not be asked"
    line = verdict([good, bad] * 3)
    assert line == "FAIL: 3 of 6 checks pass, 1 could not be asked" + ". Is it? No: 0.1" * 3


def test_images_without_an_answer_are_no_question_more() -> None:
    own = {"failed": 3, "faithfulness": {"mean": 0.5, "lo": 0.4, "hi": 0.6, "n": 9}}
    found = checks({"methods": {"nemt": own}, "mask_area": {}})
    assert verdict(found) == (
        "FAIL: 1 of 2 checks pass, 6 could not be asked. "
        "Does it answer for every image? No: 3 images failed"
    )
    whole = [found[0]] * QUESTIONS + found[1:]
    assert verdict(whole).startswith("FAIL: 7 of 8 checks pass. Does")


def test_a_module_that_learnt_nothing_is_told_apart() -> None:
    """The check's figure: paired by image, of two sets of masks that are as good or not."""
    random = np.random.default_rng(0)
    truth = np.zeros((12, 32, 32), np.bool_)
    truth[:, 8:16, 8:16] = True
    images = np.zeros((12, 1, 32, 32), np.float32)
    of = Evaluated(images=images, truth=truth, probability=None)

    def columns(share: float) -> dict[str, np.ndarray]:
        masks = random.random((12, 32, 32), np.float32) + share * truth
        found = maps.Attributed(found=dict(enumerate(masks.astype(np.float32))))
        return scores(of, found, gated=True)

    for share, passed in ((5.0, True), (0.0, False)):
        both = {"nemt": columns(share), "shuffled_module": columns(0.0)}
        rows = methods_table(both, [str(i) for i in range(12)])
        for row in rows.values():
            row["failed"] = 0
        found = checks({"methods": rows, "mask_area": {}})
        answers = {check["question"]: check["passed"] for check in found}
        assert answers["has the explanation module learnt where to look?"] is passed


def test_nonsense_is_refused_in_a_line(
    sets: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = sets / "file"
    file.write_text("not a folder")
    for out, options, message in (
        (sets / "new", ["--threads", "-1"], "--threads"),
        (sets / "new", ["--threads", "1000000"], "--threads"),
        (sets / "new", ["--device", "cuda"], "finds no GPU"),
        (file, [], "is a file"),
        (file / "new", [], "cannot be made"),
        (sets / ("x" * 300), [], "cannot be made"),
    ):
        assert call(bundle, sets / "rsna", out, *options) == 1, message
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert not (sets / "new").exists()
