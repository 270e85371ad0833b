"""Reference implementation of attention in plain torch, which the tests compare all kernels with."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable
from ml.layers.attention_kernels.kernel import AttentionKernel, Weighting
from ml.layers.attention_kernels.visibility import visible_keys
from ml.layers.context import Context


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    window_size: int | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    documents: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the keys that each query may see (Vaswani et al. 2017, equation 1).

    Args:
        query: (B, N, T, D), at the last T of the S positions of the keys.
        key: (B, K, S, D); N/K adjacent heads share one key and value (Ainslie et al. 2023).
        value: (B, K, S, Dv).
        causal: Masks keys after the query's own position.
        window_size: Number of keys visible to a causal query, including its own position; without causality to either
            side, again including it. None is all.
        scale: Factor of the scores; None is 1/√D.
        soft_cap: c in c · tanh(score / c) (Gemma 2, section 2.3); None applies no cap.
        sinks: (N), a score for each head in the softmax, without a value (gpt-oss 2025).
        documents: (B, S); a query sees only the keys of its document.
        dropout: Dropout probability of the weights.

    Returns:
        (B, N, T, Dv).
    """
    group_size = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group_size, dim=1)  # (B, N, S, D)
    value = value.repeat_interleave(group_size, dim=1)
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)  # (B, N, T, S)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    visible = visible_keys(query.shape[2], key.shape[2], causal, window_size, documents, query.device)
    scores = scores.masked_fill(~visible, -math.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), dim=-1)  # (B, N, T, S + 1)
    weights = F.dropout(scores.softmax(-1), dropout)
    return weights[..., : key.shape[2]] @ value


@configurable
class ReferenceAttention(AttentionKernel):
    """Attention in plain torch, which stores all scores: a reference to compare other kernels with, on any device."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        return attention_reference(query, key, value, **weighting._asdict())
