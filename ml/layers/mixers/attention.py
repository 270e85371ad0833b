"""Softmax attention."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ml.config import REQUIRED, Neutral, child, configurable, require, unused
from ml.layers.alibi import ALIBI_WIDTH, AlibiHeads, with_linear_biases, with_scaled_biases
from ml.layers.attention_kernels import (
    AttentionKernel,
    AttentionTask,
    AutomaticAttention,
    Weighting,
    mean_visible_keys,
)
from ml.layers.checks import positive, positive_float, probability
from ml.layers.children import optional_child
from ml.layers.context import Context
from ml.layers.linear import Linear, Projections
from ml.layers.mixers.growing import Growing
from ml.layers.mixers.softmax_mixer import SoftmaxMixer
from ml.layers.parameter import Parameter
from ml.layers.rotary import Rotary, RotaryEmbedding


@configurable(neutral={"kernel": Neutral(rounding=True, only_if=lambda attention: not attention.draws_noise)})
class Attention(SoftmaxMixer):
    """Softmax attention: y = output(softmax(q kᵀ · softmax_scale) v), with N query heads that share K key and value
    heads.

    Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; query and key norm: Henry et al. 2020; sliding window:
    Beltagy et al. 2020. `attention_reference` is the same in plain torch.

    Args:
        hidden_size: Width of the residual stream, H.
        num_heads: Number of query heads, N.
        num_kv_heads: Number of key and value heads, K; None is `num_heads`.
        head_size: Size of a query and key head, D; None is H / N.
        value_head_size: Size of a value head; None is D.
        query_norm: Constructor of the normalization of the queries; None applies none.
        key_norm: Constructor of the normalization of the keys; None applies none.
        norm_over: Channels that these two normalize together: those of a "head", with one weight for all heads (Qwen3),
            or with separate weights, "each_head" (Cohere), or those of "all_heads" (OLMo 2).
        norm_after_rotary: Normalizes after the rotary embedding (HunYuan) instead of before.
        rotary: Constructor of the rotary embedding; None applies none.
        alibi: Adds slope · (position of the key - position of the query) to the scores, with a slope for each head
            (Press et al. 2021, ALiBi; Bloom, MPT).
        scale_alibi: Rounds these biases to bfloat16 and multiplies them by the factor of the scores too (Falcon).
        window_size: Number of keys visible to a query, including its own position (without `causal`: to either side);
            None is all.
        softmax_scale: Factor of the scores; None is 1/√D.
        soft_cap: c in c · tanh(score / c) (Gemma 2); None applies no cap.
        attention_sinks: Adds a learned score for each head to the softmax, without a value (gpt-oss).
        gated: Multiplies the output of the heads by sigmoid(gate(x)) (Qwen3-Next).
        causal: Masks later positions.
        dropout: Dropout probability of the attention weights in training.
        kernel: Constructor of the attention kernel.
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    separates_documents = True
    causal: bool

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = REQUIRED,
        num_kv_heads: int | None = None,
        head_size: int | None = None,
        value_head_size: int | None = None,
        query_norm: Callable[..., nn.Module] | None = None,
        key_norm: Callable[..., nn.Module] | None = None,
        norm_over: Literal["head", "each_head", "all_heads"] = "head",
        norm_after_rotary: bool = False,
        rotary: Callable[..., RotaryEmbedding] | None = Rotary,
        alibi: bool = False,
        scale_alibi: bool = False,
        window_size: int | None = None,
        softmax_scale: float | None = None,
        soft_cap: float | None = None,
        attention_sinks: bool = False,
        gated: bool = False,
        causal: bool = True,
        dropout: float = 0.0,
        kernel: Callable[..., AttentionKernel] = AutomaticAttention,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_heads = positive("num_heads", num_heads)
        self.num_kv_heads = self.num_heads if num_kv_heads is None else positive("num_kv_heads", num_kv_heads)
        divides = self.num_heads % self.num_kv_heads == 0
        require(divides, "num_kv_heads", f"must divide num_heads ({num_heads}), not {num_kv_heads}")
        self.head_size = self.value_head_size = self._checked_head_size(hidden_size, head_size)
        if value_head_size is not None:
            self.value_head_size = positive("value_head_size", value_head_size)
        self.norm_over = norm_over
        self.norm_after_rotary = norm_after_rotary
        if query_norm is None and key_norm is None:
            unused(True, "norm_over", "query_norm", "key_norm")
            unused(True, "norm_after_rotary", "query_norm", "key_norm")
        unused(rotary is None, "norm_after_rotary", "rotary")
        self.window_size = None if window_size is None else positive("window_size", window_size)
        self.softmax_scale = None if softmax_scale is None else positive_float("softmax_scale", softmax_scale)
        self.soft_cap = None if soft_cap is None else positive_float("soft_cap", soft_cap)
        self.causal = causal
        require(causal or not alibi, "alibi", "needs causal = True")
        require(soft_cap is None or not alibi, "alibi", "needs soft_cap = None")
        unused(not alibi, "scale_alibi", "alibi")
        fits = not scale_alibi or self.num_heads <= ALIBI_WIDTH * self.num_kv_heads
        require(fits, "scale_alibi", f"needs at most {ALIBI_WIDTH} query heads to a key head")
        self.alibi = alibi
        self.scale_alibi = scale_alibi
        self.alibi_heads = AlibiHeads(0, self.num_heads, self.num_heads) if alibi else None
        self.dropout = probability("dropout", dropout)
        self.draws_noise = self.dropout > 0.0

        size = self.num_heads * self.value_head_size
        self.query = child("query", linear, hidden_size, self.num_heads * self.head_size)
        self.key = child("key", linear, hidden_size, self.num_kv_heads * self.head_size)
        self.value = child("value", linear, hidden_size, self.num_kv_heads * self.value_head_size)
        self.gate = child("gate", linear, hidden_size, size) if gated else None
        self.output = child("output", linear, size, hidden_size)
        projected = [self.query, self.key, self.value, *([self.gate] if gated else [])]
        self.projections = child("projections", Projections, projected)
        self.query_norm = self._norm("query_norm", query_norm, self.num_heads)
        self.key_norm = self._norm("key_norm", key_norm, self.num_kv_heads)
        self.rotary = optional_child("rotary", rotary, self.head_size)
        # Without `causal` a new token would change those before it, and so would a new length with another rotation.
        self.decodes = causal and (self.rotary is None or self.rotary.decodes)
        self.sinks = None
        if attention_sinks:
            self.sinks = child("sinks", Parameter, (self.num_heads,), defaults={"weight_decay": 0.0})
        self.build_kernel(kernel)

    @property
    def task(self) -> AttentionTask:
        return AttentionTask(
            head_size=self.head_size + (0 if self.alibi_heads is None else ALIBI_WIDTH),
            value_head_size=self.value_head_size,
            is_grouped=self.num_heads != self.num_kv_heads,
            causal=self.causal,
            window_size=self.window_size,
            soft_cap=self.soft_cap,
            has_sinks=self.sinks is not None,
            dropout=self.dropout,
        )

    def _checked_head_size(self, hidden_size: int, head_size: int | None) -> int:
        if head_size is not None:
            return positive("head_size", head_size)
        message = f"must divide hidden_size ({hidden_size}) where head_size is None, not {self.num_heads}"
        require(hidden_size % self.num_heads == 0, "num_heads", message)
        return max(hidden_size // self.num_heads, 1)

    def _norm(self, name: str, norm: Callable[..., nn.Module] | None, num_heads: int) -> nn.Module | None:
        size = self.head_size if self.norm_over == "head" else num_heads * self.head_size
        groups = (num_heads,) if self.norm_over == "each_head" else ()
        return optional_child(name, norm, size, *groups)

    def _normalized(self, heads: Tensor, norm: nn.Module | None) -> Tensor:
        """Heads (B, T, N, D) after one of the norms."""
        if norm is None or self.norm_over == "head":
            return heads if norm is None else norm(heads)
        return norm(heads.flatten(2)).view_as(heads)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query, key, value, *gate = self.projections(x)
        query = query.unflatten(-1, (self.num_heads, self.head_size))  # (B, T, N, D)
        key = key.unflatten(-1, (self.num_kv_heads, self.head_size))  # (B, T, K, D)
        value = value.unflatten(-1, (self.num_kv_heads, self.value_head_size))  # (B, T, K, Dv)
        if not self.norm_after_rotary:
            query, key = self._normalized(query, self.query_norm), self._normalized(key, self.key_norm)
        if self.rotary is not None:
            query, key = self.rotary.in_context(query, key, context)
        if self.norm_after_rotary:
            query, key = self._normalized(query, self.query_norm), self._normalized(key, self.key_norm)
        if self.alibi_heads is not None:
            scale = self.head_size**-0.5 if self.softmax_scale is None else self.softmax_scale
            with_biases = with_scaled_biases if self.scale_alibi else with_linear_biases
            query, key = with_biases(query, key, self.alibi_heads, context.positions, scale)
        mixed = self.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), context)  # (B, N, T, Dv)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, T, N Dv)
        if gate:
            mixed = mixed * torch.sigmoid(gate[0])
        return self.output(mixed)  # (B, T, H)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """Attention of (B, N, T, D) over the keys (B, K, T, D) and values (B, K, T, Dv) and those in the cache."""
        documents = context.all_documents()
        if context.cache is not None:
            key, value = self._with_kept(key, value, context)
            documents = None if documents is None else documents[:, -key.shape[2] :]
        dropout = self.dropout if self.training else 0.0
        scale = self.softmax_scale if self.alibi_heads is None else 1.0
        weighting = Weighting(self.causal, self.window_size, scale, self.soft_cap, self.sinks, documents, dropout)
        return self.kernel(query, key, value, weighting, context)

    def _with_kept(self, key: Tensor, value: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if not self.causal:
            raise ValueError("attention that is not causal cannot decode: a new token would change those before it")
        kept = context.state(self)
        if kept is None:
            kept = Growing(dim=2, kept=None if self.window_size is None else self.window_size - 1)
            context.keep(self, kept)
        return kept.append(key, value)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """6 N (D + Dv) for each visible key, averaged over the queries: scores and mixing (PaLM, appendix B)."""
        visible = mean_visible_keys(sequence_length, self.causal, self.window_size)
        return 6.0 * self.num_heads * (self.head_size + self.value_head_size) * visible

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_size={self.head_size}"
