"""Attention over one block of queries at a time, in plain torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ml.config import configurable
from ml.layers.attention_kernels.blocks import Block, Scores, flat, grouped, of_groups
from ml.layers.attention_kernels.blockwise_operator import blockwise_attention
from ml.layers.attention_kernels.kernel import AttentionKernel, Weighting
from ml.layers.context import Context


@configurable
class BlockwiseAttention(AttentionKernel):
    """Attention over one block of 128 queries at a time, with everything that Juniper's attention has, on any device.

    Memory is linear in the sequence length, and the keys outside a window, and on a CPU those of other documents, are
    not read. The scores are recomputed in the backward pass (Rabe and Staats 2021).
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        if weighting.dropout == 0.0:
            options = weighting._asdict()
            del options["dropout"]
            return blockwise_attention(query, key, value, **options)
        return _with_dropout(query, key, value, weighting)


def _with_dropout(query: Tensor, key: Tensor, value: Tensor, weighting: Weighting) -> Tensor:
    """Each block is recomputed in the backward pass, where dropout draws the same numbers again."""

    def mixed(block: Block) -> Tensor:
        weights, _ = scores.weights(rows[block.groups, :, block.queries], block)
        return torch.bmm(F.dropout(weights, weighting.dropout), values[block.groups, block.keys])

    rows, keys, values = grouped(query, key.shape[1]), flat(key), flat(value)
    causal, window_size, scale, soft_cap, sinks, documents, _ = weighting
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = Scores(keys, of_groups(sinks, rows), documents, causal, window_size, scale, soft_cap, rows.shape[2])
    output = query.new_empty(*rows.shape[:3], value.shape[-1])
    for block in scores.blocks():
        found = checkpoint(mixed, block, use_reentrant=False)
        output[block.groups, :, block.queries] = found.unflatten(1, (rows.shape[1], -1))
    return output.view(*query.shape[:3], value.shape[-1])
