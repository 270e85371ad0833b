"""Whole tensors from shards and back: each process gets some of the tensors whole, computes, and returns them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ml.distributed.shards import Sharding, sharded_dim


class Division(NamedTuple):
    """The division of tensors over one dimension of a mesh.

    Attributes:
        group: The processes along the dimension.
        rank: Index of this process in it.
        dim: The divided dimension of a tensor; None for replicas.
        sizes: Size of the shard of each rank along `dim`; for replicas, 0.
    """

    group: dist.ProcessGroup
    rank: int
    dim: int | None
    sizes: tuple[int, ...]

    def share_out(self, number: int) -> list[int]:
        """Returns how many of a number of tensors each rank gets."""
        least, more = divmod(number, len(self.sizes))
        return [least + (rank < more) for rank in range(len(self.sizes))]

    def gathered(self, shards: Tensor) -> Tensor:
        """Exchanges shards of all tensors, (n, ...), for the whole of some, (m, ...), by one collective."""
        counts = self.share_out(len(shards))
        if self.dim is None:
            return shards.split(counts)[self.rank]
        dim = self.dim + 1
        shapes = [_with(shards.shape, {0: counts[self.rank], dim: size}) for size in self.sizes]
        each = shards[0].numel() if len(shards) else 0
        return torch.cat(self._exchanged(shards, [count * each for count in counts], shapes), dim)

    def scattered(self, wholes: Tensor, number: int) -> Tensor:
        """Undoes `gathered` for `number` tensors, by one collective."""
        counts = self.share_out(number)
        if self.dim is None:
            return self._collected(wholes, counts)
        dim = self.dim + 1
        pieces = [piece.flatten() for piece in wholes.split(list(self.sizes), dim)]
        shapes = [_with(wholes.shape, {0: count, dim: self.sizes[self.rank]}) for count in counts]
        return torch.cat(self._exchanged(torch.cat(pieces), [len(piece) for piece in pieces], shapes))

    def _exchanged(self, sent: Tensor, sizes: list[int], shapes: list[torch.Size]) -> list[Tensor]:
        """Sends consecutive parts of `sent`, of these sizes, to the ranks; returns theirs, of these shapes."""
        lengths = [shape.numel() for shape in shapes]
        received = sent.new_empty(sum(lengths))
        dist.all_to_all_single(received, sent.flatten(), lengths, sizes, group=self.group)
        return [part.view(shape) for part, shape in zip(received.split(lengths), shapes, strict=True)]

    def _collected(self, tensors: Tensor, counts: list[int]) -> Tensor:
        """Collects the tensors of all ranks, which have `counts` of them."""
        padded = tensors.new_zeros(_with(tensors.shape, {0: counts[0]}))
        padded[: len(tensors)] = tensors
        received = tensors.new_empty(_with(tensors.shape, {0: counts[0] * len(counts)}))
        dist.all_gather_into_tensor(received, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(received.split(counts[0]), counts, strict=True)])


def divisions(shape: torch.Size, sharding: Sharding) -> list[Division]:
    """Returns the divisions of a tensor in the order in which they are undone.

    Args:
        shape: Shape of the whole tensor.
        sharding: Its division over a mesh.
    """
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh, placements = sharding
    # The dimensions of a mesh divide a tensor from the first to the last, except for FSDP, which divides the shards of
    # the tensor axis and is marked as strided.
    strided = [index for index, placement in enumerate(placements) if isinstance(placement, _StridedShard)]
    order = [index for index in range(len(placements)) if index not in strided] + strided[::-1]
    lengths, found = list(shape), []
    for index in order:
        dim, rank, size = sharded_dim(placements[index]), mesh.get_local_rank(index), mesh.size(index)
        sizes = (0,) * size if dim is None else _chunks(lengths[dim], size)
        if dim is not None:
            lengths[dim] = sizes[rank]
        found.append(Division(mesh.get_group(index), rank, dim, sizes))
    return found[::-1]


def gathered(shards: Tensor, steps: list[Division]) -> Tensor:
    """Exchanges shards of n tensors, (n, ...), for some whole tensors, (m, ...); n / number of processes each.

    Args:
        shards: Local shards, in the same order in every process.
        steps: From `divisions`.
    """
    for step in steps:
        shards = step.gathered(shards)
    return shards


def scattered(wholes: Tensor, number: int, steps: list[Division]) -> Tensor:
    """Undoes `gathered` for `number` tensors: whole tensors, (m, ...), for shards of all, (n, ...)."""
    numbers = list(itertools.accumulate(steps, lambda left, step: step.share_out(left)[step.rank], initial=number))
    for step, before in zip(reversed(steps), reversed(numbers[:-1]), strict=True):
        wholes = step.scattered(wholes, before)
    return wholes


def _chunks(length: int, number: int) -> tuple[int, ...]:
    """The sizes of `torch.chunk`, padded with empty chunks."""
    most = -(-length // number)
    return tuple(max(0, min(most, length - rank * most)) for rank in range(number))


def _with(shape: torch.Size, sizes: dict[int, int]) -> torch.Size:
    return torch.Size([sizes.get(index, size) for index, size in enumerate(shape)])
