"""Collectives that gradients pass through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor


class AllToAll(torch.autograd.Function):
    """Sends rows to each rank of a group and receives rows from each; the gradients are sent back.

    `AllToAll.apply(x, received, sent, group)` with x (Σ sent, ...) returns (Σ received, ...), in the order of the
    ranks. `received` and `sent` are the numbers of rows, by rank.
    """

    @staticmethod
    def forward(ctx, x: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.arguments = sent, received, group
        return exchanged(x, received, sent, group)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return exchanged(gradient, *ctx.arguments), None, None, None


def exchanged(x: Tensor, received: Sequence[int], sent: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Rows (Σ sent, ...) to (Σ received, ...); see `AllToAll`."""
    rows = functional.all_to_all_single(x.contiguous(), list(received), list(sent), group)
    return functional.wait_tensor(rows)
