"""One run on several processes, as torchrun starts them; alone it is one process.

Every process reads all tables, takes its share of each batch, and validates everything; the first
one writes. Gradients are averaged by DistributedDataParallel: NCCL on GPUs, Gloo on CPUs. A batch
norm normalises by the share of its process, and its running statistics are the mean of all.
"""

import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of a run.

    rank: number of this process, from 0.
    size: number of processes.
    device: processor of this process.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> "Team":
        """Joins the processes that torchrun started; `device`: "cpu" or "cuda"."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(rank=0, size=1, device=torch.device(device))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        here = torch.device(device, local) if device == "cuda" else torch.device(device)
        if device == "cuda":
            torch.cuda.set_device(here)
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(rank=distributed.get_rank(), size=size, device=here)

    @property
    def first(self) -> bool:
        """True for the process that writes and reports."""
        return self.rank == 0

    def share(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """This process's part of a batch, whose order stays.

        The even places and then the odd ones are dealt out, for `balanced` puts one kind of image
        at each.
        """
        places = np.arange(len(rows))
        dealt = np.concatenate([places[::2], places[1::2]])
        share: NDArray[np.intp] = np.sort(dealt[self.rank :: self.size])
        return rows[share]

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over all processes; see `average_statistics`."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the argument has two names by now
            return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def average_statistics(self, module: nn.Module) -> None:
        """Gives the batch norms that are trained the mean of all processes' running statistics.

        After every step, so that a checkpoint, which is the first process's, is all of them.
        """
        if self.size == 1:
            return
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
        statistics = [v for norm in norms for v in norm.buffers() if v.is_floating_point()]
        if not statistics:
            return
        summed = torch.cat(statistics)
        distributed.all_reduce(summed)
        means = torch.split(summed / self.size, [len(value) for value in statistics])
        for value, mean in zip(statistics, means, strict=True):
            value.copy_(mean)

    def total(self, value: Tensor) -> float:
        """The sum over all processes of a scalar, the same number on each."""
        if self.size == 1:
            return float(value)
        summed = value.detach().double().clone()
        distributed.all_reduce(summed)
        return float(summed)

    def agree(self, value: float) -> float:
        """The first process's value on every process, for decisions that all must take alike."""
        if self.size == 1:
            return value
        agreed = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(agreed, src=0)
        return float(agreed)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Ends the group."""
        if self.size > 1:
            distributed.destroy_process_group()
