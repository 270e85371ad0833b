"""Collectives that gradients pass through, over one axis of the mesh.

A `group` is a process group or its name (`mesh.get_group().group_name`), which `torch.compile` traces without a graph
break.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch.distributed.distributed_c10d import GroupName


def all_reduce(x: Tensor, group: GroupName, operation: str = "sum") -> Tensor:
    """Sum, or another reduction, of x over the ranks; without a gradient."""
    return functional.wait_tensor(functional.all_reduce(x.contiguous(), operation, group))


def all_gather(x: Tensor, dim: int, group: GroupName) -> Tensor:
    """Concatenation of the ranks' x, of equal shapes, along `dim`; without a gradient."""
    return functional.wait_tensor(functional.all_gather_single(x.contiguous(), dim, group))


def reduce_scatter(x: Tensor, dim: int, group: GroupName) -> Tensor:
    """This rank's part, along `dim`, of the sum of x over the ranks; without a gradient."""
    return functional.wait_tensor(functional.reduce_scatter_single(x.contiguous(), "sum", dim, group))


class Copy(torch.autograd.Function):
    """Identity of a replicated tensor that each rank uses in its own way: the gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: GroupName) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class Sum(torch.autograd.Function):
    """Sum over the ranks, which all use it in the same way: the gradient is passed on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: GroupName) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Gather(torch.autograd.Function):
    """Concatenation along `dim` that each rank uses in its own way: the gradients are summed and divided again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: GroupName) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(gradient, ctx.dim, ctx.group), None, None


class ReduceScatter(torch.autograd.Function):
    """Sum over the ranks, of which each keeps its part along `dim`: the gradients are concatenated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: GroupName) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(gradient, ctx.dim, ctx.group), None, None


class Join(torch.autograd.Function):
    """Concatenation along the last dimension of parts of given sizes, used by all ranks in the same way.

    The gradient of a rank's part is its part of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], rank: int, group: GroupName) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        widest = max(sizes)
        padded = torch.nn.functional.pad(x, (0, widest - x.shape[-1]))
        parts = all_gather(padded, x.dim() - 1, group).split(widest, dim=-1)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.split(ctx.sizes, dim=-1)[ctx.rank], None, None, None


class Whole(torch.autograd.Function):
    """Concatenation along `dim` of equal parts, used by all ranks in the same way.

    The gradient of a rank's part is its part of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, rank: int, group: GroupName) -> Tensor:
        ctx.dim, ctx.size, ctx.rank = dim, size, rank
        return all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient.chunk(ctx.size, ctx.dim)[ctx.rank], None, None, None, None


class Part(torch.autograd.Function):
    """This rank's part, along `dim`, of what all ranks have: the gradients are concatenated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, size: int, rank: int, group: GroupName) -> Tensor:
        ctx.dim, ctx.group = dim, group
        return x.chunk(size, dim)[rank].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return all_gather(gradient, ctx.dim, ctx.group), None, None, None, None


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
