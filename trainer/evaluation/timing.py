"""Seconds an image of every method and of the target model's own pass, in one run."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images
from ..progress import Progress
from ..statistics import average, figure
from .methods import Method

TARGET_MODEL = "target_model"
"""Key of the target model's forward pass among the timings."""
ROUNDS = 8
"""Images that each method is asked for, one at a time."""
SLOW_ROUNDS = 2
"""The same of a method that takes more than SLOW seconds, which is not timed in a batch."""
SLOW = 1.5
BATCH = 32

Run = Callable[[Images], object]
Timings = dict[str, dict[str, dict[str, float]]]


def time_methods(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    patients: Sequence[str],
    progress: Progress,
) -> Timings:
    """`seconds` and `seconds_in_batch` an image, with their intervals, by method.

    One image at a time, as a service is asked, in turns: every method has one image, then every
    method the next, so that what else the machine does falls on all alike. Each is asked once
    before its clock starts, and a GPU is waited for. In a batch: the mean of BATCH images asked at
    once; absent for a method that is too slow.
    """
    device = next(network.parameters()).device

    @torch.inference_mode()
    def target_model(chosen: Images) -> None:
        network.logits(torch.from_numpy(chosen).to(device))

    runs: dict[str, Run] = {TARGET_MODEL: target_model}
    runs |= {key: _run(method, network) for key, method in methods.items()}
    progress.stage("time", len(runs) * (2 + ROUNDS))
    taken: dict[str, list[float]] = {key: [] for key in runs}
    for key, run in runs.items():
        run(images[:1])  # and it is warm
        progress.step(key)
    for i in range(ROUNDS):
        for key, run in runs.items():
            if i < SLOW_ROUNDS or np.mean(taken[key]) <= SLOW:
                at = i % len(images)
                taken[key].append(_seconds(run, images[at : at + 1].copy(), device))
            progress.step(key)
    found: Timings = {}
    batch = images[np.arange(BATCH) % len(images)]
    for key, run in runs.items():
        whose = [patients[i % len(images)] for i in range(len(taken[key]))]
        found[key] = {"seconds": figure(average(np.array(taken[key])), whose)}
        if np.mean(taken[key]) <= SLOW:
            run(batch)
            seconds = _seconds(run, batch.copy(), device) / BATCH
            found[key]["seconds_in_batch"] = figure(lambda _, s=seconds: s, ["all"])  # type: ignore[misc]
        progress.step(key)
    return found


def _run(method: Method, network: ExplainedNetwork) -> Run:
    return lambda images: method.maps(network, images)


def _seconds(run: Run, images: Images, device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    run(images)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
