"""Sums of a step over the processes of a run, by one reduction of one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.distributed import Layout, World
from ml.layers import LossSums


class StepSums(NamedTuple):
    """Contribution of a process to the measurements of a step, on the device."""

    loss: Tensor  # () cross entropy, nats per token of all processes
    parts: dict[str, Tensor]  # () each: the other terms of the loss, per token of all processes
    loads: dict[str, Tensor]  # (E) of each router, by its name: number of tokens of each expert

    @classmethod
    def zero(cls, device: torch.device) -> StepSums:
        """Returns the sums of no micro-batch."""
        return cls(torch.zeros((), device=device), {}, {})

    @classmethod
    def of(cls, losses: LossSums, num_units: int | Tensor, names: Mapping[nn.Module, str]) -> StepSums:
        """Returns the sums of a micro-batch.

        Args:
            losses: Its sums.
            num_units: Number of targets, or pairs, of the step in all processes.
            names: Names of the routers.
        """
        loads: dict[str, Tensor] = {}
        for router, load in losses.loads:
            loads[names[router]] = loads.get(names[router], 0.0) + load
        parts = {name: part / num_units for name, part in losses.parts.items()}
        return cls(losses.cross_entropy / num_units, parts, loads)

    def plus(self, other: StepSums) -> StepSums:
        """Returns the sums of both."""
        parts = {**self.parts, **{name: self.parts.get(name, 0.0) + part for name, part in other.parts.items()}}
        loads = {**self.loads, **{name: self.loads.get(name, 0.0) + load for name, load in other.loads.items()}}
        return StepSums(self.loss + other.loss, parts, loads)


class SumNames(NamedTuple):
    """Names of the parts of the loss, and of the routers with their number of experts, in one order everywhere."""

    parts: tuple[str, ...]
    routers: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, sums: StepSums) -> SumNames:
        """Returns the names in the sums of this process."""
        return cls(tuple(sorted(sums.parts)), tuple(sorted((name, len(load)) for name, load in sums.loads.items())))

    def of_all(self, world: World) -> SumNames:
        """Returns the names of all processes, of which the stages of a pipeline have different ones; collective."""
        found = world.gather(self)
        parts = {part for names in found for part in names.parts}
        routers = {router for names in found for router in names.routers}
        return SumNames(tuple(sorted(parts)), tuple(sorted(routers)))


def summed(layout: Layout, names: SumNames, sums: StepSums, squares: Tensor) -> tuple[StepSums, Tensor]:
    """Returns the sums over all processes; a collective call that does not synchronize the device.

    Loss, parts and loads are sums over the parts of the batch, which the ranks of the tensor axis measure alike and
    which count once. The vector is float64, so that counts are exact.

    Args:
        layout: The mesh.
        names: What all processes measure.
        sums: Those of this process.
        squares: (P) parts of this process in the squared norms of the gradients, float64.
    """
    if layout.world.size == 1:
        return sums, squares
    zero = torch.zeros_like(sums.loss)
    scalars = [sums.loss, *(sums.parts.get(name, zero) for name in names.parts)]
    loads = [sums.loads.get(name, zero.expand(size)) for name, size in names.routers]
    measured = torch.cat([torch.stack(scalars).double(), *(load.double() for load in loads)])
    reduced = layout.world.sum(torch.cat([layout.counted_once(measured), squares]))
    sizes = [size for _, size in names.routers]
    loss_and_parts, *of_routers, squares = reduced.split([len(scalars), *sizes, len(squares)])
    loss, *values = loss_and_parts.float().unbind()
    found = {name: load.float() for (name, _), load in zip(names.routers, of_routers, strict=True)}
    return StepSums(loss, dict(zip(names.parts, values, strict=True)), found), squares
