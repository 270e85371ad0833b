"""Loss of a language model head in chunks, without all logits in memory."""

import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ml.layers.loss import LossSums

Loss = Callable[[Tensor, Tensor, Sequence[Tensor]], LossSums]
"""Loss of n tokens: (hidden states (n, H), weight (V, H), further tensors of the tokens, each (n, ...))."""


def chunked_sums(loss: Loss, x: Tensor, weight: Tensor, others: Sequence[Tensor], chunk_size: int) -> LossSums:
    """`loss(x, weight, others)` of x (tokens, H), with `chunk_size` tokens at a time.

    The gradients of x and of the weight are computed together with the loss, so no chunk is computed twice; the
    backward pass only scales them. Logits of one chunk are in memory at a time.
    """
    pieces = [x.split(chunk_size), *(other.split(chunk_size) for other in others)]
    if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return added([loss(piece, weight, rest) for piece, *rest in zip(*pieces, strict=True)])
    kept: list[LossSums] = []
    total = _ChunkedLoss.apply(x, weight, loss, pieces, kept)
    return added(kept)._replace(total=total)


def added(sums: list[LossSums]) -> LossSums:
    """The sums over several sets of tokens."""
    return LossSums(
        total=_sum([s.total for s in sums]),
        cross_entropy=_sum([s.cross_entropy for s in sums]),
        num_tokens=_sum([s.num_tokens for s in sums]),
        parts={name: _sum([s.parts[name] for s in sums]) for name in sums[0].parts},
        loads=[load for s in sums for load in s.loads],
    )


def _sum(scalars: Sequence[Tensor]) -> Tensor:
    return functools.reduce(operator.add, scalars)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, loss: Loss, pieces: list, kept: list[LossSums]) -> Tensor:
        x_gradient = torch.empty_like(x) if x.requires_grad else None
        wide = torch.promote_types(weight.dtype, torch.float32)  # a sum over many chunks
        weight_gradient = torch.zeros_like(weight, dtype=wide) if weight.requires_grad else None
        whole = weight.detach().requires_grad_(weight.requires_grad)
        start = 0
        for piece, *rest in zip(*pieces, strict=True):
            piece = piece.detach().requires_grad_(x.requires_grad)
            with torch.enable_grad():
                sums = loss(piece, whole, rest)
            wanted = [tensor for tensor in (piece, whole) if tensor.requires_grad]
            gradients = list(torch.autograd.grad(sums.total, wanted))
            if x_gradient is not None:
                x_gradient[start : start + len(piece)] = gradients.pop(0)
            if weight_gradient is not None:
                weight_gradient += gradients.pop(0)
            kept.append(sums._replace(total=sums.total.detach()))
            start += len(piece)
        ctx.save_for_backward(x_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype))
        return _sum([sums.total for sums in kept])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        scaled = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return *scaled, None, None, None
