"""Attention as a person reads it: the plain form of what `Attention` computes, which the tests compare with."""

import math

import torch
from torch import Tensor


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    window_size: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the keys that each query may see (Vaswani et al. 2017, equation 1).

    `query` is (B, N, T, D), `key` and `value` (B, K, T, D); N/K neighbouring heads share one key and value (Ainslie et
    al. 2023). `scale` None is 1/√D. `window_size` counts the keys that a causal query sees, itself included; without
    causality it is the reach to both sides, again counting itself.
    """
    group_size = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group_size, dim=1)  # (B, N, T, D)
    value = value.repeat_interleave(group_size, dim=1)
    scores = (
        query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    )  # (B, N, T, T)
    visible = visible_keys(query.shape[2], causal, window_size, query.device)
    return scores.masked_fill(~visible, -math.inf).softmax(-1) @ value


def visible_keys(sequence_length: int, causal: bool, window_size: int | None, device: torch.device) -> Tensor:
    """Returns (T, T), true where the query of the row may see the key of the column."""
    places = torch.arange(sequence_length, device=device)
    distance = places[:, None] - places[None, :]  # how far the key lies behind the query
    visible = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        visible &= distance >= 0
    if window_size is not None:
        visible &= distance.abs() < window_size
    return visible
