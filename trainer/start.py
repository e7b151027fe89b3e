"""Where `nemt-train` and `nemt-eval` start: they say so if the extra `train` is not installed."""

import sys
from importlib import import_module


def nemt_train() -> int:
    """Runs `nemt-train`; returns the exit status. `nemt-train --help` works without the extra."""
    return _start("nemt-train", "cli")


def nemt_eval() -> int:
    """Runs `nemt-eval`; returns the exit status."""
    return _start("nemt-eval", "eval_cli")


def _start(command: str, module: str) -> int:
    try:
        status: int = import_module(f".{module}", __package__).main()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("nemt_dicom", "trainer")):
            raise
        hint = "pip install 'nemt-dicom[train]'"
        print(f"{command}: {error.name} is not installed: {hint}", file=sys.stderr)
        return 1
    return status
