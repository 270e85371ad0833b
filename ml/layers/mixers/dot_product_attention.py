"""Attention by the fastest path for the device, dtype and options."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, bfloat16

from ml.layers.mixers.attention_reference import attention_reference, visible_keys
from ml.layers.mixers.blockwise_attention import BLOCK_SIZE, blockwise_attention


def dot_product_attention(
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
    on_cpu: bool | None = None,
) -> Tensor:
    """Computes `attention_reference` by the fastest path, with the same arguments.

    `on_cpu` takes the path of a CPU, or of a GPU; None takes that of the query's device.

    torch's kernel supports neither caps nor sinks. On the CPU it is slow in bfloat16 and where query and value differ
    in size, and it computes masked scores outside a window. There, attention takes one block of queries at a time.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    has_more = soft_cap is not None or sinks is not None
    options: dict[str, Any] = {"causal": causal, "window_size": window_size, "scale": scale, "documents": documents}
    if has_more and dropout:
        return attention_reference(query, key, value, **options, soft_cap=soft_cap, sinks=sinks, dropout=dropout)
    is_narrow = window_size is not None and is_mostly_hidden(window_size, num_keys, causal)
    is_slow_dtype_or_shape = query.dtype == bfloat16 or query.shape[-1] != value.shape[-1]
    on_cpu = query.device.type == "cpu" if on_cpu is None else on_cpu
    slow_in_library = on_cpu and (is_slow_dtype_or_shape or is_narrow)
    if has_more or (slow_in_library and not dropout):
        return blockwise_attention(query, key, value, **options, soft_cap=soft_cap, sinks=sinks)
    mask, is_causal = None, False
    is_windowed = window_size is not None and window_size < num_keys
    if is_windowed or documents is not None or (causal and 1 < num_queries < num_keys):
        mask = visible_keys(num_queries, num_keys, causal, window_size, documents, query.device)
    elif causal and num_queries == num_keys:  # a single query sees all keys there are
        is_causal = True
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def is_mostly_hidden(window_size: int, num_keys: int, causal: bool) -> bool:
    """True where a block of queries reads at most half of the keys: break-even on a CPU (benchmarks/windows.py)."""
    reach = window_size if causal else 2 * window_size
    return 2 * (BLOCK_SIZE + reach) <= num_keys


def mean_visible_keys(sequence_length: int, causal: bool, window_size: int | None) -> float:
    """Mean number of keys that a query sees in a sequence of one document."""
    reach = min(window_size or sequence_length, sequence_length)
    behind = reach * sequence_length - reach * (reach - 1) / 2  # pairs at a distance of 0 to reach - 1
    pairs = behind if causal else 2 * behind - sequence_length
    return pairs / sequence_length
