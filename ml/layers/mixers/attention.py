"""Softmax attention."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import REQUIRED, child, configurable, require
from ml.layers.checks import positive, positive_float, probability
from ml.layers.context import Context
from ml.layers.linear import Linear
from ml.layers.mixers.attention_reference import visible_keys
from ml.layers.mixers.blockwise_attention import blockwise_attention
from ml.layers.parameter import checked_lr_scale
from ml.layers.rotary import Rotary


@configurable
class Attention(nn.Module):
    """y = output(softmax(q kᵀ · softmax_scale) v), with N query heads that share K key and value heads.

    Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; query and key norm: Henry et al. 2020; sliding window:
    Beltagy et al. 2020. `attention_reference` is the same in plain torch.

    num_kv_heads: None is `num_heads`. head_size: None is hidden_size / num_heads. softmax_scale: None is 1/√head_size.
    window_size: how many keys a query sees, itself included (without `causal`: to either side); None is all.
    dropout: of the attention weights, in training.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = REQUIRED,
        num_kv_heads: int | None = None,
        head_size: int | None = None,
        query_norm: Callable[..., nn.Module] | None = None,
        key_norm: Callable[..., nn.Module] | None = None,
        rotary: Callable[..., nn.Module] | None = Rotary,
        window_size: int | None = None,
        softmax_scale: float | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.num_heads = positive("num_heads", num_heads)
        self.num_kv_heads = self.num_heads if num_kv_heads is None else positive("num_kv_heads", num_kv_heads)
        divides = self.num_heads % self.num_kv_heads == 0
        require(divides, "num_kv_heads", f"must divide num_heads ({num_heads}), not {num_kv_heads}")
        if head_size is None:
            divides = hidden_size % self.num_heads == 0
            require(
                divides,
                "num_heads",
                f"must divide hidden_size ({hidden_size}) where head_size is None, not {num_heads}",
            )
            head_size = max(hidden_size // self.num_heads, 1)
        self.head_size = positive("head_size", head_size)
        self.window_size = None if window_size is None else positive("window_size", window_size)
        self.softmax_scale = None if softmax_scale is None else positive_float("softmax_scale", softmax_scale)
        self.causal = causal
        self.dropout = probability("dropout", dropout)
        self.lr_scale = checked_lr_scale(lr_scale)

        kv_size = self.num_kv_heads * self.head_size
        self.query = child("query", linear, hidden_size, self.num_heads * self.head_size)
        self.key = child("key", linear, hidden_size, kv_size)
        self.value = child("value", linear, hidden_size, kv_size)
        self.output = child("output", linear, self.num_heads * self.head_size, hidden_size)
        self.query_norm = child("query_norm", query_norm, self.head_size) if query_norm is not None else None
        self.key_norm = child("key_norm", key_norm, self.head_size) if key_norm is not None else None
        self.rotary = child("rotary", rotary, self.head_size) if rotary is not None else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query = self.query(x).unflatten(-1, (self.num_heads, self.head_size))  # (B, T, N, D)
        key = self.key(x).unflatten(-1, (self.num_kv_heads, self.head_size))  # (B, T, K, D)
        value = self.value(x).unflatten(-1, (self.num_kv_heads, self.head_size))
        if self.query_norm is not None:
            query = self.query_norm(query)
        if self.key_norm is not None:
            key = self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query, key, context.positions)
        mixed = self.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))  # (B, N, T, D)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, T, H)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of (B, N, T, D) over (B, K, T, D), by the fastest path for the device and dtype."""
        sequence_length = query.shape[2]
        dropout = self.dropout if self.training else 0.0
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout:
            return blockwise_attention(
                query, key, value, causal=self.causal, window_size=self.window_size, scale=self.softmax_scale
            )
        windowed = self.window_size is not None and self.window_size < sequence_length
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible_keys(sequence_length, self.causal, self.window_size, query.device) if windowed else None,
            dropout_p=dropout,
            is_causal=self.causal and not windowed,
            scale=self.softmax_scale,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )

    def training_flops_per_token(self, sequence_length: int) -> float:
        """12 N D for each visible key, averaged over the queries: scores and mixing (PaLM, appendix B)."""
        return 12.0 * self.num_heads * self.head_size * self.mean_visible_keys(sequence_length)

    def mean_visible_keys(self, sequence_length: int) -> float:
        """How many keys a query sees, averaged over a sequence."""
        reach = min(self.window_size or sequence_length, sequence_length)
        behind = reach * sequence_length - reach * (reach - 1) / 2  # pairs at a distance of 0 to reach - 1
        pairs = behind if self.causal else 2 * behind - sequence_length
        return pairs / sequence_length

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_size={self.head_size}"
