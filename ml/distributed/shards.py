"""Shards: the part of each named tensor that each process holds.

`DTensor` is imported lazily: it takes half a second, and a single process has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ml.distributed.world import World

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

_PLAIN = (Tensor, nn.Parameter)


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


class Sharding(NamedTuple):
    """Division of a distributed tensor over a mesh.

    Attributes:
        mesh: The mesh.
        placements: What happens along each dimension of the mesh.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]

    def groups(self, dims: Iterable[int]) -> list[dist.ProcessGroup]:
        """Returns the process groups over which dimensions of the tensor are divided."""
        wanted = set(dims)
        found = [index for index, placement in enumerate(self.placements) if sharded_dim(placement) in wanted]
        return [self.mesh.get_group(index) for index in found]


def local(tensor: Tensor) -> Tensor:
    """Returns the values that this process holds, sharing memory; the tensor itself if it is not distributed."""
    if type(tensor) in _PLAIN or (distributed := as_distributed(tensor)) is None:
        return tensor
    return distributed._local_tensor


def as_distributed(tensor: Tensor) -> DTensor | None:
    """Returns the tensor if it is distributed, else None."""
    if type(tensor) in _PLAIN:
        return None
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None


def sharding_of(tensor: Tensor) -> Sharding | None:
    """Returns the division of a tensor; None if it is not distributed."""
    distributed = as_distributed(tensor)
    return None if distributed is None else Sharding(distributed.device_mesh, tuple(distributed.placements))


def sharded_dim(placement: Placement) -> int | None:
    """Returns the dimension of the tensor that a dimension of the mesh divides; None for replicas."""
    return getattr(placement, "dim", None)


def shard_of(tensor: Tensor) -> Shard:
    """Returns the shard of a tensor that this process holds."""
    distributed = as_distributed(tensor)
    if distributed is None:
        return Shard((0,) * tensor.ndim, tuple(tensor.shape))
    (chunk,) = distributed.__create_chunk_list__()  # as `torch.distributed.checkpoint` saves it
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


def zeros_of_means(tensor: Tensor, dim: int) -> Tensor:
    """Returns zeros for the means of a tensor along one dimension, which is kept with size 1.

    They are divided as the tensor is; along `dim`, every process has the mean of the whole tensor.

    Args:
        tensor: The tensor.
        dim: The dimension, from the end: negative.
    """
    kept = _with_size_1(tensor.shape, dim)
    if (distributed := as_distributed(tensor)) is None:
        return tensor.new_zeros(kept)
    from torch.distributed.tensor import Replicate

    shares = distributed._local_tensor.new_zeros(_with_size_1(distributed._local_tensor.shape, dim))
    placements = [Replicate() if sharded_dim(one) == tensor.ndim + dim else one for one in distributed.placements]
    return _assembled(shares, kept, distributed, placements)


def zeros_of_blocks(tensor: Tensor, size: int) -> Tensor:
    """Returns float32 zeros for one value of each block of a row, divided as the tensor is.

    Args:
        tensor: The tensor, (..., n · size), with a whole number of blocks in the rows of every shard.
        size: Entries of a block.

    Returns:
        (..., n).
    """
    shape = [*tensor.shape[:-1], tensor.shape[-1] // size]
    if (distributed := as_distributed(tensor)) is None:
        return tensor.new_zeros(shape, dtype=torch.float32)
    part = distributed._local_tensor
    shares = part.new_zeros((*part.shape[:-1], part.shape[-1] // size), dtype=torch.float32)
    return _assembled(shares, shape, distributed, distributed.placements)


def _assembled(shares: Tensor, shape: list[int], like: DTensor, placements: Sequence[Placement]) -> DTensor:
    """Returns the distributed tensor of a shape with these shares, on the mesh of another one."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        shares, like.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _with_size_1(shape: torch.Size, dim: int) -> list[int]:
    return [1 if index == len(shape) + dim else size for index, size in enumerate(shape)]
