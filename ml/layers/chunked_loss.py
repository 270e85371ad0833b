"""Loss of a language model head in chunks, without all logits in memory."""

import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ml.layers.loss import LossSums

Loss = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], LossSums]
"""Loss of n tokens: (hidden states (n, H), weight (V, H) and bias (V), tensors of the tokens, each (n, ...))."""


def chunked_sums(
    loss: Loss, x: Tensor, weights: Sequence[Tensor], others: Sequence[Tensor], chunk_size: int
) -> LossSums:
    """`loss(x, weights, others)` of x (tokens, H), with `chunk_size` tokens at a time.

    The gradients of x and of the weights are computed together with the loss, so no chunk is computed twice; the
    backward pass only scales them. Logits of one chunk are in memory at a time.
    """
    pieces = [x.split(chunk_size), *(other.split(chunk_size) for other in others)]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights))):
        return added([loss(piece, weights, rest) for piece, *rest in zip(*pieces, strict=True)])
    kept: list[LossSums] = []
    total = _ChunkedLoss.apply(loss, pieces, kept, x, *weights)
    return added(kept).with_total(total)


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
    def forward(ctx, loss: Loss, pieces: list, kept: list[LossSums], x: Tensor, *weights: Tensor) -> Tensor:
        x_gradient = torch.empty_like(x) if x.requires_grad else None
        whole = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]
        trained = [weight for weight in whole if weight.requires_grad]
        # A sum over many chunks is kept in float32.
        sums = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in trained]
        start = 0
        for piece, *rest in zip(*pieces, strict=True):
            piece = piece.detach().requires_grad_(x.requires_grad)
            with torch.enable_grad():
                found = loss(piece, whole, rest)
            wanted = [tensor for tensor in (piece, *whole) if tensor.requires_grad]
            gradients = list(torch.autograd.grad(found.total, wanted))
            if x_gradient is not None:
                x_gradient[start : start + len(piece)] = gradients.pop(0)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
            kept.append(found.with_total(found.total.detach()))
            start += len(piece)
        summed = iter([total.to(weight.dtype) for total, weight in zip(sums, trained, strict=True)])
        ctx.save_for_backward(x_gradient, *(next(summed) if weight.requires_grad else None for weight in whole))
        return _sum([found.total for found in kept])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        scaled = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return None, None, None, *scaled
