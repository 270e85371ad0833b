"""Shards: the part of each named tensor that each process holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ml.distributed.world import World


class Shard(NamedTuple):
    """A block of a tensor.

    Attributes:
        offsets: Index of its first entry along each dimension.
        sizes: Its shape.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """Returns the block of a whole tensor, as a view."""
        bounds = zip(self.offsets, self.sizes, strict=True)
        return whole[tuple(slice(first, first + size) for first, size in bounds)]


class Holders(NamedTuple):
    """The processes that hold a tensor.

    Attributes:
        shape: Shape of the whole tensor.
        shards: The shard of each process, by rank; only of those that hold one.
    """

    shape: tuple[int, ...]
    shards: dict[int, Shard]


def local(tensor: Tensor) -> Tensor:
    """Returns the values that this process holds, sharing memory; the tensor itself if it is not distributed."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def shard_of(tensor: Tensor) -> Shard:
    """Returns the shard of a tensor that this process holds."""
    if not isinstance(tensor, DTensor):
        return Shard((0,) * tensor.ndim, tuple(tensor.shape))
    (chunk,) = tensor.__create_chunk_list__()  # as `torch.distributed.checkpoint` saves it
    return Shard(tuple(chunk.offsets), tuple(chunk.sizes))


def holders(tensors: Mapping[str, Tensor], world: World) -> dict[str, Holders]:
    """Returns the processes that hold each tensor, by name; a collective call.

    Args:
        tensors: Tensors of this process by name, on any device. Other processes may hold others.
        world: All processes.

    Returns:
        The holders of all tensors of all processes, in the same order in every process.
    """
    mine = {name: (tuple(tensor.shape), shard_of(tensor)) for name, tensor in tensors.items()}
    found: dict[str, Holders] = {}
    for rank, held in enumerate(world.gather(mine)):
        for name, (shape, shard) in held.items():
            holding = found.setdefault(name, Holders(shape, {}))
            assert holding.shape == shape, f"{name} is {shape} on rank {rank}, and {holding.shape} on another"
            holding.shards[rank] = shard
    return found


def empty_like(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns an uninitialized tensor of the same shape, dtype and placements on a device."""
    return torch.empty_like(tensor, device=device, requires_grad=False)
