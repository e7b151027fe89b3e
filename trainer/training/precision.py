"""The processor, its memory, and the precision that a training step is computed in.

Validation is always float32.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nemt_dicom.errors import TrainingError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`."""


def keep_memory() -> None:
    """Lets the process keep freed memory instead of giving it back to the system at once.

    Feature maps are blocks of megabytes that come and go with every layer. glibc maps each anew
    and gives it back, and the system clears every page again: a batch of 32 through
    EfficientNet-Lite0 took 21 ms an image, and 10 ms without that (2 threads, AMD EPYC). With
    another C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def require_device(device: str) -> None:
    """Raises `TrainingError` if PyTorch finds no such processor."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("PyTorch finds no GPU: leave --device out")


def has_bfloat16(device: str) -> bool:
    """Whether the processor has instructions for bfloat16.

    With them a training step in mixed precision is faster than in float32. Without them PyTorch
    computes it as well, but on a CPU several times slower. If PyTorch does not tell, the answer is
    no.
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


@contextmanager
def mixed_precision(device: str, *, enabled: bool) -> Iterator[None]:
    """bfloat16 by autocast if `enabled`; on a CPU, operations with slow gradients stay float32."""
    with torch.autocast(device, torch.bfloat16, enabled=enabled):
        if enabled and device == "cpu":
            with _SlowGradientsInFloat32():
                yield
        else:
            yield


class _SlowGradientsInFloat32(TorchFunctionMode):
    """Computes in float32 the depthwise convolutions whose bfloat16 gradient oneDNN makes slowly.

    In bfloat16 the gradient of a convolution with a stride takes 30 to 45 times as long, the
    gradient of the weights of a 5 x 5 convolution 3 to 4 times. deploy/decisions.md has the
    figures.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        slow = func is torch.conv2d and len(args) > 1 and _is_slow(*args)
        if not slow:
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(*[v.float() if isinstance(v, Tensor) else v for v in args], **named)


def _is_slow(images: Tensor, weight: Tensor, *rest: Any) -> bool:
    """Whether the gradient of a conv2d call is slow in bfloat16.

    The arguments come in the order of torch.nn.Conv2d: images, weight, bias, stride, ... A call
    that names its stride counts as one without a stride; it is only slower.
    """
    depthwise = weight.shape[1] == 1 and images.shape[1] > 1
    if not depthwise or not torch.is_grad_enabled():
        return False
    strided = len(rest) > 1 and rest[1] not in (1, (1, 1))
    return weight.requires_grad or (images.requires_grad and strided)
