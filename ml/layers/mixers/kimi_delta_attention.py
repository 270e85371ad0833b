"""Kimi delta attention."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ml.config import Neutral, child, configurable, unused
from ml.layers.activations import sigmoid
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
class KimiDeltaAttention(RecurrentMixer):
    """Kimi delta attention: y = output(norm(o) · sigmoid(gate_up(gate_down(x)))), o the gated delta rule with a decay
    for each channel of the key (Kimi Linear, arXiv:2510.26692, section 4).

    q, k, v = convolution([query(x), key(x), value(x)]), q and k of unit length and q over √D; β = sigmoid(beta(x)) and
    g = -exp(A_log) · softplus(decay_up(decay_down(x)) + dt_bias), with one A_log for each head and one dt_bias for each
    channel.

    Args:
        hidden_size: Width of the residual stream, H.
        num_heads: Number of heads; None is H / 128.
        key_head_size: Size of a query or key head, D; None is H / num_heads.
        value_head_size: Size of a value head; None is `key_head_size`.
        decay_rank: Rank of the decay projection; None is `value_head_size`.
        gate_rank: Rank of the gate projection; None is `value_head_size`.
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
        key_head_size: int | None = None,
        value_head_size: int | None = None,
        decay_rank: int | None = None,
        gate_rank: int | None = None,
        chunk_size: int = 32,
        kernel: Callable[..., ChunkedRecurrence] = ChunkedRecurrence,
        linear: Callable[..., nn.Module] = Linear,
        convolution: Callable[..., nn.Module] = CausalConvolution,
        norm: Callable[..., nn.Module] = GatedRMSNorm,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_heads = heads_or_default(hidden_size, num_heads)
        self.key_head_size = checked_head_size(hidden_size, self.num_heads, "key_head_size", key_head_size)
        self.value_head_size = self.key_head_size
        if value_head_size is not None:
            self.value_head_size = positive("value_head_size", value_head_size)
        decay_rank = self.value_head_size if decay_rank is None else positive("decay_rank", decay_rank)
        gate_rank = self.value_head_size if gate_rank is None else positive("gate_rank", gate_rank)
        self.chunk_size = checked_chunk_size(chunk_size)
        self.build_kernel(kernel)
        unused(not self.kernel.takes_chunk_size, "chunk_size", "kernel")

        size, value_size = self.num_heads * self.key_head_size, self.num_heads * self.value_head_size
        self.query = child("query", linear, hidden_size, size)
        self.key = child("key", linear, hidden_size, size)
        self.value = child("value", linear, hidden_size, value_size)
        self.beta = child("beta", linear, hidden_size, self.num_heads)
        # dt_bias is the bias of the decay, and gate_up has that of the gate.
        self.decay_down = child("decay_down", linear, hidden_size, decay_rank, defaults={"bias": False})
        self.decay_up = child("decay_up", linear, decay_rank, size, defaults={"bias": False})
        self.gate_down = child("gate_down", linear, hidden_size, gate_rank, defaults={"bias": False})
        self.gate_up = child("gate_up", linear, gate_rank, value_size)
        projected = (self.query, self.key, self.value, self.beta, self.decay_down, self.gate_down)
        self.projections = child("projections", Projections, projected)
        self.convolution = child("convolution", convolution, 2 * size + value_size, defaults={"bias": False})
        self.A_log = undecayed_child("A_log", (self.num_heads,), log_of_uniform)
        self.dt_bias = undecayed_child("dt_bias", (size,), time_step_bias)
        norm_defaults = {"gate_position": "after", "activation": sigmoid}
        self.norm = child("norm", norm, self.value_head_size, defaults=norm_defaults)
        self.output = child("output", linear, value_size, hidden_size)

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The convolution."""
        return {"convolution": self.convolution}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        query, key, value, beta, decay, gate = self.projections(x)
        query, key, value = self.convolved(query, key, value, context)
        decay = self.in_heads(self.decay_up(decay))  # (B, T, N, D)
        mixed, state = self.kernel.gated_delta_rule(
            query,
            key,
            value,
            log_of_decay(decay, self.A_log[:, None], self.in_heads(self.dt_bias)),
            beta.sigmoid(),
            context.state(self),
            context.document_starts(),
            self.chunk_size,
        )
        context.keep(self, state)
        mixed = self.norm(mixed, self.in_heads(self.gate_up(gate)))  # (B, T, N, V)
        return self.output(mixed.flatten(2))  # (B, T, H)

    def convolved(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (B, T, N, D) of unit length, the queries over √D, and values (B, T, N, V)."""
        sizes = (query.shape[-1], key.shape[-1], value.shape[-1])
        convolved = self.convolution(torch.cat((query, key, value), dim=-1), context).split(sizes, dim=-1)
        query, key, value = (self.in_heads(part) for part in convolved)
        return unit_length(query) * self.key_head_size**-0.5, unit_length(key), value

    def in_heads(self, x: Tensor) -> Tensor:
        """(..., N D) to (..., N, D)."""
        return x.unflatten(-1, (self.num_heads, -1))

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Three products with a state of D V entries forward (recall, write, read), twice that backward."""
        return 18.0 * self.num_heads * self.key_head_size * self.value_head_size

    def extra_repr(self) -> str:
        sizes = f"key_head_size={self.key_head_size}, value_head_size={self.value_head_size}"
        return f"num_heads={self.num_heads}, {sizes}"
