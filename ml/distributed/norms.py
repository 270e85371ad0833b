"""Norms and clipping of gradients and weights that several processes hold shards of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ml.distributed.shards import Shard, holders, local
from ml.distributed.world import World
from ml.layers.tracing import has_values

_PIECE = 2**18  # entries of a dot product; the rounding of its sum in float32 grows with its length
_NO_DIVISION_BY_0 = 1e-6  # as `torch.nn.utils.clip_grad_norm_`


class Replicas(NamedTuple):
    """Shares of this process in the norms of the parameters of all processes.

    Attributes:
        names: The parameters of all processes, in the same order in every process.
        shares: (P) float64 on the device, 1 / number of processes that hold the same shard as this one; None where each
            shard exists once.
        absent: () 0 on the device, for a parameter without a shard or a gradient here.
    """

    names: tuple[str, ...]
    shares: Tensor | None
    absent: Tensor


def replicas(parameters: Mapping[str, Tensor], world: World) -> Replicas:
    """Counts the replicas of the shards of this process; a collective call.

    Args:
        parameters: The trained parameters of this process by name, at least one. Other processes may hold others; a
            name is that of the same parameter in all of them, such as one that two stages of a pipeline tie.
        world: All processes.

    Returns:
        The shares, on the device of the parameters.
    """
    device = next(iter(parameters.values())).device
    absent = torch.zeros((), device=device)
    if world.size == 1:
        return Replicas(tuple(parameters), None, absent)
    held = holders(parameters, world)
    counts = [_num_equal(holding.shards, world.rank) for holding in held.values()]
    shares = None
    if any(count != 1 for count in counts):
        shares = 1.0 / torch.tensor(counts, dtype=torch.float64, device=device)
    return Replicas(tuple(held), shares, absent)


@torch.no_grad()
def local_squares(tensors: Mapping[str, Tensor | None], replicas: Replicas) -> Tensor:
    """Computes the part of this process in the squared Euclidean norm of each tensor.

    The sum over all processes, `World.sum`, is the squared norms, because each shard is divided by its number of
    replicas. The square of a local shard is accumulated in float32 at least, that of a large one on a CPU in pieces of
    which the sum is float64. The sum over many processes rounds in the last digits of float64 only.

    Args:
        tensors: Gradients or weights of this process by name; None counts as 0.
        replicas: The replicas of the parameters.

    Returns:
        (P) float64, in the order of `replicas.names`; 0 for a parameter of other processes only.
    """
    present = {name: local(tensor) for name, tensor in tensors.items() if tensor is not None}
    if not present:
        return replicas.absent.double().expand(len(replicas.names)).clone()
    found = dict(zip(present, _squares(list(present.values())).unbind(), strict=True))
    absent = replicas.absent.double()
    squares = torch.stack([found.get(name, absent) for name in replicas.names])
    return squares if replicas.shares is None else squares * replicas.shares


def _squares(tensors: list[Tensor]) -> Tensor:
    """Computes the squared norm of each of n tensors, (n) float64."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    if any(tensor.device.type != "cpu" or tensor.dtype != dtype for tensor in tensors):
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype)).double().square()
    # On a CPU, torch's norm of a whole tensor runs on one thread, at a fraction of the memory's rate.
    owners, dots = [], []
    for owner, tensor in enumerate(tensors):
        flat = tensor.reshape(-1)
        is_split = len(flat) > _PIECE and has_values(flat)  # a plan of a step needs no pieces
        for piece in flat.split(_PIECE) if is_split else (flat,):
            owners.append(owner)
            dots.append(torch.dot(piece, piece))
    squares = torch.zeros(len(tensors), dtype=torch.float64)
    return squares.index_add_(0, torch.tensor(owners), torch.stack(dots).double())


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """Computes the divisor that clips gradients to a global norm, as `torch.nn.utils.clip_grad_norm_`.

    Args:
        norm: () global norm of the gradients of all processes.
        max_norm: Largest norm after clipping.

    Returns:
        () at least 1; exactly 1 if the gradients are not clipped.
    """
    return ((norm + _NO_DIVISION_BY_0) / max_norm).clamp(min=1.0)


@torch.no_grad()
def divide_(tensors: Iterable[Tensor | None], divisor: Tensor) -> None:
    """Divides tensors in place.

    Args:
        tensors: Gradients; None is skipped.
        divisor: () divisor, on their device.
    """
    values = [local(tensor) for tensor in tensors if tensor is not None]
    if values:
        torch._foreach_div_(values, divisor)


def _num_equal(shards: Mapping[int, Shard], rank: int) -> int:
    """Returns the number of processes with the shard of a rank; 1 for a rank without one."""
    return sum(shard == shards[rank] for shard in shards.values()) if rank in shards else 1
