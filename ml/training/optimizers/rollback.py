"""Rollback of in-place changes decided on the device, without synchronizing with the host."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ml.distributed.shards import sharding_of

T = TypeVar("T", bound=Tensor)
# Elements of a portion of several tensors. A CPU is fast within its cache; elsewhere few kernel launches matter more.
_MOST_ENTRIES = 2**25
_MOST_ENTRIES_ON_CPU = 2**18


@contextlib.contextmanager
def rolled_back_where(undo: Tensor | None, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Rolls back the in-place changes of the body bit for bit if `undo` is true, NaN and infinity included.

    Args:
        undo: () bool on the device; None keeps the changes and copies nothing.
        tensors: The tensors that the body changes; copied before it.
    """
    with torch.no_grad():
        before = [] if undo is None else [tensor.clone() for tensor in tensors]
    yield
    if undo is not None:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                # Weights that are offloaded are on the CPU, and the decision is on the GPU.
                torch.where(undo.to(tensor.device), old, tensor, out=tensor)


def portions(tensors: Sequence[T]) -> Iterator[list[T]]:
    """Yields tensors in lists of one shape, dtype and sharding, short enough that a copy of a list takes little memory.

    The processes that share a tensor yield the same lists. A list of sharded tensors has at least one for each process
    if there are so many.
    """
    alike: dict[tuple, list[T]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.shape, tensor.dtype, sharding_of(tensor)), []).append(tensor)
    for (shape, _, sharding), group in alike.items():
        most = _MOST_ENTRIES_ON_CPU if group[0].device.type == "cpu" else _MOST_ENTRIES
        num_ranks = 1 if sharding is None else sharding.mesh.size()
        length = max(1, num_ranks, num_ranks * most // max(1, shape.numel()))
        yield from (group[first : first + length] for first in range(0, len(group), length))
