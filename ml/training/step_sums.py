"""Sums of a step over the processes of a run, by one reduction of one vector."""

from typing import NamedTuple

import torch
from torch import Tensor

from ml.distributed import Layout


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
