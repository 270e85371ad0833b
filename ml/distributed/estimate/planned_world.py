"""A world of many processes in a single one, whose exchanges move nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from ml.distributed.world import World

_Shared = TypeVar("_Shared")


@dataclass(frozen=True)
class PlannedWorld(World):
    """One rank of a world whose other processes do not exist; each of them is taken to be like this one."""

    def host_sum(self, values: Sequence[int]) -> list[int]:
        """Returns the sums if all processes have these values."""
        return [value * self.size for value in values]

    def share(self, value: _Shared | None) -> _Shared:
        """Returns `value`."""
        return value  # type: ignore[return-value]

    def gather(self, value: Any) -> list[Any]:
        """Returns `value` once for each process."""
        return [value] * self.size

    def set_limit(self, group: dist.ProcessGroup) -> None:
        """Does nothing: no collective waits."""


@contextlib.contextmanager
def planned_world(size: int, rank: int = 0) -> Iterator[World]:
    """Creates a process group whose collectives do nothing, and removes it at the end.

    Args:
        size: Number of processes.
        rank: Index of the process to plan.

    Yields:
        The world, on the CPU.
    """
    if size == 1:
        yield World()
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield PlannedWorld(rank, size)
    finally:
        dist.destroy_process_group()
