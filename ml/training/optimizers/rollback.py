"""Changes that are taken back where the device says so, without the host waiting to hear."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=Tensor)
# Entries of a portion of more than one tensor. A CPU is fast on what fits its cache; elsewhere few launches count more.
_MOST_ENTRIES = 2**25
_MOST_ENTRIES_ON_CPU = 2**18


@contextlib.contextmanager
def rolled_back_where(undo: Tensor | None, tensors: Sequence[Tensor]) -> Iterator[None]:
    """What the body does to `tensors`, in place, is undone bit by bit where `undo`, a () bool, is true; None: it stays.

    The tensors are copied before; NaN and infinity of an undone change leave no trace.
    """
    with torch.no_grad():
        before = [] if undo is None else [tensor.clone() for tensor in tensors]
    yield
    if undo is not None:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                torch.where(undo, old, tensor, out=tensor)


def portions(tensors: Sequence[T]) -> Iterator[list[T]]:
    """`tensors` in lists of one shape and type each, short enough that a copy of one costs little memory."""
    alike: dict[tuple, list[T]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.shape, tensor.dtype), []).append(tensor)
    for group in alike.values():
        most = _MOST_ENTRIES_ON_CPU if group[0].device.type == "cpu" else _MOST_ENTRIES
        length = max(1, most // max(1, group[0].numel()))
        yield from (group[first : first + length] for first in range(0, len(group), length))
