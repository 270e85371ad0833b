"""Operators of attention over one block of queries at a time, forward and backward.

Each block reads only its visible keys, and its scores are recomputed in the backward pass, so memory stays linear in
the sequence length whatever is done to the scores. `attention_reference` is the reference.
"""

import math

import torch
from torch import Tensor

from ml.layers.attention_kernels.blocks import Scores, flat, grouped, of_groups


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    window_size: int | None,
    scale: float | None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """As `attention_reference`, without dropout: (B, N, T, D) over (B, K, S, D) and (B, K, S, Dv)."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _attend(query, key, value, sinks, documents, causal, window_size, scale, soft_cap)


@torch.library.custom_op("juniper::blockwise_attention", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    documents: Tensor | None,
    causal: bool,
    window_size: int | None,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    rows, keys, values = grouped(query, key.shape[1]), flat(key), flat(value)
    scores = Scores(keys, of_groups(sinks, rows), documents, causal, window_size, scale, soft_cap, rows.shape[2])
    output = rows.new_empty(*rows.shape[:3], value.shape[-1])
    for block in scores.blocks():
        weights, _ = scores.weights(rows[block.groups, :, block.queries], block)
        mixed = torch.bmm(weights, values[block.groups, block.keys])
        output[block.groups, :, block.queries] = mixed.unflatten(1, (rows.shape[1], -1))
    return output.view(*query.shape[:3], value.shape[-1])


@_attend.register_fake
def _(query, key, value, sinks, documents, causal, window_size, scale, soft_cap):
    return query.new_empty(*query.shape[:3], value.shape[-1])


@torch.library.custom_op("juniper::blockwise_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    documents: Tensor | None,
    causal: bool,
    window_size: int | None,
    scale: float,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradient, rows = grouped(gradient, key.shape[1]), grouped(query, key.shape[1])
    keys, values = flat(key), flat(value)
    scores = Scores(keys, of_groups(sinks, rows), documents, causal, window_size, scale, soft_cap, rows.shape[2])
    # Each key is met by many blocks of queries: their sum is kept in float32.
    wide = torch.promote_types(key.dtype, torch.float32)
    key_gradient, value_gradient = torch.zeros_like(keys, dtype=wide), torch.zeros_like(values, dtype=wide)
    sink_gradient = torch.zeros(rows.shape[:2], dtype=wide, device=rows.device)
    row_gradient = torch.empty_like(rows)
    for block in scores.blocks():
        at_keys = block.groups, block.keys
        query_block = rows[block.groups, :, block.queries]
        gradient_block = gradient[block.groups, :, block.queries].flatten(1, 2)
        weights, capped = scores.weights(query_block, block)
        value_gradient[at_keys] += torch.bmm(weights.mT, gradient_block)
        weight_gradient = torch.bmm(gradient_block, values[at_keys].mT)
        if sinks is None:
            scores_gradient = torch._softmax_backward_data(weight_gradient, weights, -1, weights.dtype)
        else:
            mean = (weights * weight_gradient).sum(-1, keepdim=True, dtype=wide)  # gradient of a sink's weight
            scores_gradient = (weights * (weight_gradient - mean)).to(weights.dtype)
            sunk = (1 - weights.sum(-1, keepdim=True, dtype=wide)) * -mean
            sink_gradient[block.groups] += sunk.unflatten(1, (rows.shape[1], -1)).sum((2, 3))
        if capped is not None and soft_cap is not None:
            scores_gradient = scores_gradient * (1 - (capped / soft_cap).square())
        block_gradient = torch.bmm(scores_gradient, keys[at_keys]).mul_(scale)
        row_gradient[block.groups, :, block.queries] = block_gradient.unflatten(1, (rows.shape[1], -1))
        key_gradient[at_keys] += torch.bmm(scores_gradient.mT, query_block.flatten(1, 2)).mul_(scale)
    return (
        row_gradient.view(query.shape),
        key_gradient.to(key.dtype).view(key.shape),
        value_gradient.to(value.dtype).view(value.shape),
        sink_gradient.view(query.shape[0], -1).sum(0),  # (N)
    )


@_attend_backward.register_fake
def _(gradient, query, key, value, sinks, documents, causal, window_size, scale, soft_cap):
    sink_gradient = query.new_empty(query.shape[1], dtype=torch.promote_types(key.dtype, torch.float32))
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape), sink_gradient


def _save(ctx, inputs, output):
    query, key, value, sinks, documents, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, sinks, documents)


def _backward(ctx, gradient):
    saved = ctx.saved_tensors  # read once: a recomputed activation can be unpacked once
    *gradients, sink_gradient = _attend_backward(gradient, *saved, *ctx.options)
    sinks = saved[3]
    return *gradients, None if sinks is None else sink_gradient.to(sinks.dtype), None, None, None, None, None


_attend.register_autograd(_backward, setup_context=_save)
