"""The gated delta net."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ml.config import Neutral, child, configurable, require, unused
from ml.layers.checks import heads_or_default, positive
from ml.layers.children import undecayed_child
from ml.layers.context import Context
from ml.layers.convolution import CausalConvolution
from ml.layers.linear import Linear, Projections
from ml.layers.mixers.recurrent_mixer import RecurrentMixer
from ml.layers.mixers.state_space_initialization import log_of_uniform, time_step_bias
from ml.layers.normalization import GatedRMSNorm
from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule
from ml.layers.recurrences.delta_rule import (
    checked_chunk_size,
    checked_head_size,
    log_of_decay,
    unit_length,
)


@configurable(neutral={"kernel": Neutral(rounding=True)})
class GatedDeltaNet(RecurrentMixer):
    """Gated delta net: y = output(norm(o, gate(x))), o the gated delta rule with one decay for each head (Yang et al.
    2024).

    q, k, v = convolution([query(x), key(x), value(x)]), q and k of unit length and q over √D; β = sigmoid(beta(x)) and
    g = -exp(A_log) · softplus(decay(x) + dt_bias), as in Qwen3-Next. `gated_delta_rule_reference` is the rule.

    Args:
        hidden_size: Width of the residual stream, H.
        num_heads: Number of query and key heads; None is H / 128.
        num_value_heads: Number of value heads, each with its own state and decay; adjacent ones share a query and a
            key. None is `num_heads`.
        key_head_size: Size of a query or key head, D; None is H / num_heads.
        value_head_size: Size of a value head; None is `key_head_size`.
        chunk_size: Number of tokens that `ChunkedRecurrence` computes together; a power of two. It does not change the
            result.
        kernel: Constructor of the recurrence kernel.
        linear: Constructor of the projections.
        convolution: Constructor of the convolution.
        norm: Constructor of the gated normalization of the output.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    rule = Rule.GATED_DELTA_RULE

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int | None = None,
        num_value_heads: int | None = None,
        key_head_size: int | None = None,
        value_head_size: int | None = None,
        chunk_size: int = 32,
        kernel: Callable[..., ChunkedRecurrence] = ChunkedRecurrence,
        linear: Callable[..., nn.Module] = Linear,
        convolution: Callable[..., nn.Module] = CausalConvolution,
        norm: Callable[..., nn.Module] = GatedRMSNorm,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_heads = heads_or_default(hidden_size, num_heads)
        self.num_value_heads = self.num_heads
        if num_value_heads is not None:
            self.num_value_heads = positive("num_value_heads", num_value_heads)
        divides = self.num_value_heads % self.num_heads == 0
        require(
            divides, "num_value_heads", f"must be a multiple of num_heads ({self.num_heads}), not {num_value_heads}"
        )
        self.key_head_size = checked_head_size(hidden_size, self.num_heads, "key_head_size", key_head_size)
        self.value_head_size = self.key_head_size
        if value_head_size is not None:
            self.value_head_size = positive("value_head_size", value_head_size)
        self.chunk_size = checked_chunk_size(chunk_size)
        self.build_kernel(kernel)
        unused(not self.kernel.takes_chunk_size, "chunk_size", "kernel")

        size, value_size = self.num_heads * self.key_head_size, self.num_value_heads * self.value_head_size
        self.query = child("query", linear, hidden_size, size)
        self.key = child("key", linear, hidden_size, size)
        self.value = child("value", linear, hidden_size, value_size)
        self.gate = child("gate", linear, hidden_size, value_size)
        self.beta = child("beta", linear, hidden_size, self.num_value_heads)
        # dt_bias is the bias of this one.
        self.decay = child("decay", linear, hidden_size, self.num_value_heads, defaults={"bias": False})
        projected = (self.query, self.key, self.value, self.gate, self.beta, self.decay)
        self.projections = child("projections", Projections, projected)
        self.convolution = child("convolution", convolution, 2 * size + value_size, defaults={"bias": False})
        self.A_log = undecayed_child("A_log", (self.num_value_heads,), log_of_uniform)
        self.dt_bias = undecayed_child("dt_bias", (self.num_value_heads,), time_step_bias)
        self.norm = child("norm", norm, self.value_head_size, defaults={"gate_position": "after"})
        self.output = child("output", linear, value_size, hidden_size)

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The convolution."""
        return {"convolution": self.convolution}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query, key, value, gate, beta, decay = self.projections(x)
        query, key, value = self.convolved(query, key, value, context)
        mixed, state = self.kernel.gated_delta_rule(
            query,
            key,
            value,
            log_of_decay(decay, self.A_log, self.dt_bias),
            beta.sigmoid(),
            context.state(self),
            context.document_starts(),
            self.chunk_size,
        )
        context.keep(self, state)
        gate = gate.unflatten(-1, (self.num_value_heads, self.value_head_size))
        return self.output(self.norm(mixed, gate).flatten(2))  # (B, T, N V) -> (B, T, H)

    def convolved(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """For the N heads of the values: queries and keys (B, T, N, D) of unit length, and values (B, T, N, V)."""
        sizes = (query.shape[-1], key.shape[-1], value.shape[-1])
        query, key, value = self.convolution(torch.cat((query, key, value), dim=-1), context).split(sizes, dim=-1)
        query = unit_length(query.unflatten(-1, (self.num_heads, -1))) * self.key_head_size**-0.5
        key = unit_length(key.unflatten(-1, (self.num_heads, -1)))
        if (group_size := self.num_value_heads // self.num_heads) > 1:
            query, key = (x.repeat_interleave(group_size, dim=2) for x in (query, key))
        return query, key, value.unflatten(-1, (self.num_value_heads, -1))

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Three products with a state of D V entries forward (recall, write, read), twice that backward."""
        return 18.0 * self.num_value_heads * self.key_head_size * self.value_head_size

    def extra_repr(self) -> str:
        heads = f"num_heads={self.num_heads}, num_value_heads={self.num_value_heads}"
        return f"{heads}, key_head_size={self.key_head_size}, value_head_size={self.value_head_size}"
