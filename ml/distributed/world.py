"""The processes of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ml import launcher
from ml.errors import OtherProcessFailed, RunFailure, UserError

_Shared = TypeVar("_Shared")
_CPU = torch.device("cpu")
_LIMIT = datetime.timedelta(minutes=10)


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
        limit: Time that a collective may take before this process ends with an error.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = _CPU
    hosts: dist.ProcessGroup | None = None
    limit: datetime.timedelta = _LIMIT

    def for_thread(self) -> World:
        """Returns the same processes with separate host exchanges, for a single thread; a collective call."""
        if self.size == 1:
            return self
        return dataclasses.replace(self, hosts=dist.new_group(backend="gloo", timeout=self.limit))

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

    def broadcast(self, values: Tensor) -> Tensor:
        """Returns the tensor of rank 0 in every process, on its device; those of the others have its shape."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.broadcast(values, src=0)
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

    def collect(self, value: _Shared) -> list[_Shared] | None:
        """Returns the picklable values of all processes, by rank, in rank 0; None in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.hosts)
        return values

    def deal(self, values: Sequence[_Shared] | None) -> _Shared:
        """Returns the value for this process out of a list in rank 0, one for each rank.

        Args:
            values: Any picklable values; ignored except in rank 0.
        """
        if self.size == 1:
            assert values is not None
            return values[0]
        dealt: list[Any] = [None]
        dist.scatter_object_list(dealt, list(values or ()) if self.is_first else None, src=0, group=self.hosts)
        return dealt[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def first(self, function: Callable[[], _Shared]) -> _Shared:
        """Calls a function in rank 0 alone and returns its picklable value in every process; a collective call.

        Raises:
            Exception: What the function raised, in rank 0.
            OtherProcessFailed: The function raised, in the other processes.
        """
        return self.share(self.together(function if self.is_first else lambda: None))

    def together(self, function: Callable[[], _Shared]) -> _Shared:
        """Calls a function in every process; an error in one of them ends all; a collective call.

        Raises:
            Exception: What the function raised, in the first process where it did.
            OtherProcessFailed: It raised in another process.
        """
        if self.size == 1:
            return function()
        value, error = None, None
        try:
            value = function()
        except Exception as raised:
            error = raised
        self.require_none(error)
        return value  # type: ignore[return-value]

    def require_none(self, error: Exception | None) -> None:
        """Ends all processes if one of them has an error; a collective call.

        Raises:
            Exception: The error, in the first process that has one.
            OtherProcessFailed: Another process has one.
        """
        if not any(self.host_sum([error is not None])):  # cheaper than the messages, and the rule
            return
        told = None if error is None else (str(error), _exit_code(error))
        for rank, problem in enumerate(self.gather(told)):
            if problem is not None and rank == self.rank:
                assert error is not None
                raise error
            if problem is not None:
                raise OtherProcessFailed(rank, *problem)

    def common(self, error: Exception) -> Exception:
        """Returns the error to raise where every process finds the same one: the error itself in rank 0."""
        return error if self.is_first else OtherProcessFailed(0, str(error), _exit_code(error))

    def set_limit(self, group: dist.ProcessGroup) -> None:
        """Gives a process group `limit`; torch creates the groups of a mesh with separate limits."""
        dist.distributed_c10d._set_pg_timeout(self.limit, group)

    def barrier(self) -> None:
        """Waits for all processes."""
        self.host_sum([0])


ALONE = World()  # a single process


def _exit_code(error: Exception) -> int:
    return 2 if isinstance(error, UserError) else 1


@contextlib.contextmanager
def started(device: torch.device, timeout: float) -> Iterator[World]:
    """Joins the process group that the environment describes and leaves it at the end.

    After an error the group ends with the process, so that the message of the error comes before those of the processes
    that lose the connection to this one. A group that exists already is used and left as it is.

    Args:
        device: The device of this process: "cpu" takes gloo, "cuda" takes nccl and the device of the local rank.
        timeout: Seconds that a collective may take before the process ends with an error.

    Yields:
        The world; a single process where the environment names no others.

    Raises:
        RunFailure: The connection to another process was lost, or it did not answer in time.
    """
    if not launcher.is_launched():
        yield World(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", launcher.local_rank())
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=timeout)
    is_own = not dist.is_initialized()
    try:
        if is_own:
            _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", limit)
        hosts = dist.new_group(backend="gloo", timeout=limit)
        world = World(dist.get_rank(), dist.get_world_size(), launcher.local_rank(), device, hosts, limit)
        try:
            yield world
        except OtherProcessFailed as error:
            with contextlib.suppress(RuntimeError):  # until that process has reported its error and ended
                dist.recv(torch.empty(1), error.rank, group=hosts)
            raise
    except Exception as error:
        if is_of_connection(error):
            raise RunFailure(
                f"rank {launcher.rank()} lost the connection to another process, or waited for it longer than "
                f"Mesh.timeout ({timeout:g} seconds): see the error of that process. The same command resumes from the "
                f"last checkpoint"
            ) from error
        raise
    if is_own:
        dist.destroy_process_group()


def _join(backend: str, limit: datetime.timedelta) -> None:
    """Joins the process group of the environment, also after leaving an earlier one in the same process.

    The store of the launcher keeps the addresses of the earlier group, so each group has its own prefix there.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    number = store.add(f"groups_of_rank_{rank}", 1)
    store = dist.PrefixStore(f"group_{number}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)


def is_of_connection(error: BaseException | None) -> bool:
    """Returns whether an error, or what it follows from, is of the connection between processes."""
    if error is None:
        return False
    is_lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
    return is_lost or is_of_connection(error.__cause__)
