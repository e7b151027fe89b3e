"""Prodigy as the paper sets it."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO

from prodigyopt import Prodigy
from torch import nn


def prodigy(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Prodigy:
    """Prodigy with the safeguarded warm-up (paper, section 4.2; lr is 1 there)."""
    with redirect_stdout(StringIO()):  # it prints its settings
        return Prodigy(parameters, lr=lr, weight_decay=weight_decay, safeguard_warmup=True)
