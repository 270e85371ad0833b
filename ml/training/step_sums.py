"""Sums of a step over the processes of a run, by one reduction of one vector."""

from typing import NamedTuple

import torch
from torch import Tensor

from ml.distributed import Layout, World


class StepSums(NamedTuple):
    """What a process adds to the measurements of a step, on the device."""

    loss: Tensor  # () cross entropy, nats per token of all processes
    parts: dict[str, Tensor]  # () each: the other terms of the loss, per token of all processes
    loads: dict[str, Tensor]  # (E) of each router, by its name: number of tokens of each expert


def summed(layout: Layout, sums: StepSums, squares: Tensor) -> tuple[StepSums, Tensor]:
    """Returns the sums over all processes; a collective call that does not synchronize the device.

    Loss, parts and loads are sums over the parts of the batch, which the ranks of the tensor axis measure alike and
    which count once. All processes have the same parts and routers. The vector is float64, so that counts are exact.

    Args:
        layout: The mesh.
        sums: Those of this process.
        squares: (P) parts of this process in the squared norms of the gradients, float64.
    """
    if layout.world.size == 1:
        return sums, squares
    parts, loads = sorted(sums.parts), sorted(sums.loads)
    measured = torch.cat(
        [
            torch.stack([sums.loss, *(sums.parts[name] for name in parts)]).double(),
            *(sums.loads[name].double() for name in loads),
        ]
    )
    if layout.coordinate("tensor") != 0:
        measured.zero_()
    reduced = layout.world.sum(torch.cat([measured, squares]))
    sizes = [len(sums.loads[name]) for name in loads]
    loss_and_parts, *of_routers, squares = reduced.split([1 + len(parts), *sizes, len(squares)])
    loss, *values = loss_and_parts.float().unbind()
    found = {name: load.to(sums.loads[name].dtype) for name, load in zip(loads, of_routers, strict=True)}
    return StepSums(loss, dict(zip(parts, values, strict=True)), found), squares


class OtherStages:
    """Zeros in the place of what the other stages of a pipeline measure, so that all processes sum one vector.

    Args:
        world: All processes.
    """

    def __init__(self, world: World):
        self.world = world
        self._parts: set[str] | None = None
        self._loads: dict[str, int] = {}

    def completed(self, sums: StepSums) -> StepSums:
        """Returns the sums of this process with the parts and the loads of all; the first is a collective call.

        Raises:
            ValueError: A part of the loss or a router was not measured in the first step.
        """
        mine = set(sums.parts), {name: len(load) for name, load in sums.loads.items()}
        if self._parts is None:
            measured = self.world.gather(mine)
            self._parts = {name for parts, _ in measured for name in parts}
            self._loads = {name: size for _, loads in measured for name, size in loads.items()}
        if late := sorted((mine[0] - self._parts) | (mine[1].keys() - self._loads.keys())):
            raise ValueError(f"{late[0]} was not measured in the first step, which Mesh.pipeline requires")
        zero = torch.zeros_like(sums.loss)
        parts = {name: sums.parts.get(name, zero) for name in self._parts}
        loads = {name: sums.loads.get(name, zero.expand(size)) for name, size in self._loads.items()}
        return sums._replace(parts=parts, loads=loads)
