"""The processes of a run."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_Shared = TypeVar("_Shared")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """All processes of a run, seen from one of them. The default is a single process, where every exchange is trivial.

    Collectives on tensors run on their device; `host_sum`, `share` and `barrier` run on the hosts and never
    synchronize a device.

    Attributes:
        rank: Index of this process, from 0.
        size: Number of processes.
        local_rank: Index of this process on its machine.
        device: The device of this process.
        hosts: Process group of the host exchanges; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = _CPU
    hosts: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """True for rank 0, which owns the run folder and the terminal."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes, on its device and without synchronizing it."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def host_sum(self, values: Sequence[int]) -> list[int]:
        """Returns the sums of integers over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(sums, group=self.hosts)
        return sums.tolist()

    def share(self, value: _Shared | None) -> _Shared:
        """Returns the value of rank 0 in every process.

        Args:
            value: Any picklable value; ignored except in rank 0.
        """
        if self.size == 1:
            return value  # type: ignore[return-value]
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.hosts)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def barrier(self) -> None:
        """Waits for all processes."""
        self.host_sum([0])


def is_launched() -> bool:
    """True in a process that `torchrun`, or a launcher with the same environment variables, started with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def started(device: torch.device, timeout: float) -> Iterator[World]:
    """Joins the process group that the environment describes and leaves it at the end.

    Args:
        device: The device of this process: "cpu" takes gloo, "cuda" takes nccl and the device of the local rank.
        timeout: Seconds that a collective may take before the process ends with an error.

    Yields:
        The world; a single process where the environment names no others.
    """
    if not is_launched():
        yield World(device=device)
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=limit)
    try:
        hosts = dist.new_group(backend="gloo", timeout=limit)
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, device, hosts)
    finally:
        dist.destroy_process_group()
