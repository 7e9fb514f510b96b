"""One process or several, as started by torchrun: gradients are averaged over them, and the first one writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relocalizer.errors import ConfigError
from relocalizer.network.precision import choose_device


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all of a training."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes."""
        return DistributedDataParallel(network) if self.count > 1 else network

    def without_averaging(self, network: nn.Module, *, only_if: bool) -> AbstractContextManager[object]:
        """Context in which gradients stay in this process, for all but the last part of an accumulated step."""
        return network.no_sync() if only_if and isinstance(network, DistributedDataParallel) else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of a tensor on the CPU."""
        if self.count > 1:
            on_device = values.to(self.device)
            dist.all_reduce(on_device)
            return on_device.cpu()
        return values

    def gather(self, value: list[object]) -> list[object]:
        """The lists of all processes, joined in order of rank."""
        if self.count == 1:
            return value
        parts: list[list[object]] = [[] for _ in range(self.count)]
        dist.all_gather_object(parts, value)
        return [one for part in parts for one in part]

    def wait(self) -> None:
        """Wait for all others."""
        if self.count > 1:
            dist.barrier()


def process_count() -> int:
    """Number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes of torchrun, from its environment; alone without it.

    Raises:
        DeviceError: the device is not available.
        ConfigError: several processes and one named GPU.
    """
    count = process_count()
    if count == 1:
        yield Processes(0, 1, choose_device(device))
        return
    if ":" in device:
        raise ConfigError(f"device: {device} for {count} processes; name cuda or cpu, each process takes its own GPU")
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count, chosen)
    finally:
        dist.destroy_process_group()
