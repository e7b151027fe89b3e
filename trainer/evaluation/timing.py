"""Seconds an image of every method and of the target model's own pass, in one run."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from nemt_dicom.model.evaluation import Seconds
from nemt_dicom.model.network import ExplainedNetwork

from ..arrays import Images
from ..inference import device_of
from ..progress import Progress
from ..statistics import Patients, average, constant, figure
from .methods import Method
from .settings import EvaluationSettings

TARGET_MODEL = "target_model"
"""Key of the target model's forward pass among the timings."""

Run = Callable[[Images], object]


def time_methods(
    network: ExplainedNetwork,
    methods: Mapping[str, Method],
    images: Images,
    patients: Patients,
    settings: EvaluationSettings,
    progress: Progress,
) -> dict[str, Seconds]:
    """Seconds an image by method, and of the target model under `TARGET_MODEL`.

    images: (N, C, S, S), of which every method can make a map. One image at a time, in turns:
    every method gets one image, then every method the next, so that other work of the machine
    falls on all alike. Each is asked once before its clock starts, and a GPU is waited for. Then a
    batch of images at once, unless the method is slow.
    """
    device = device_of(network)

    @torch.inference_mode()
    def target_model(chosen: Images) -> None:
        network.logits(torch.from_numpy(chosen).to(device))

    runs: dict[str, Run] = {TARGET_MODEL: target_model}
    runs |= {key: _run(method, network) for key, method in methods.items()}
    progress.stage("time", len(runs) * (2 + settings.timing_rounds))
    for key, run in runs.items():
        run(images[:1])  # warms it up
        progress.step(key)
    single: dict[str, list[float]] = {key: [] for key in runs}
    for i in range(settings.timing_rounds):
        at = i % len(images)
        for key, run in runs.items():
            if i < settings.timing_slow_rounds or not _slow(single[key], settings):
                single[key].append(_seconds(run, images[at : at + 1].copy(), device))
            progress.step(key)
    batch = images[np.arange(settings.timing_batch) % len(images)]
    results = {}
    for key, run in runs.items():
        owners = patients.take(i % len(images) for i in range(len(single[key])))
        each = None
        if not _slow(single[key], settings):
            run(batch)
            each = constant(_seconds(run, batch.copy(), device) / len(batch))
        results[key] = Seconds(single=figure(average(np.array(single[key])), owners), batch=each)
        progress.step(key)
    return results


def _slow(seconds: list[float], settings: EvaluationSettings) -> bool:
    return bool(np.mean(seconds) > settings.timing_slow_seconds)


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
