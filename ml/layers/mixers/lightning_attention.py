"""Lightning attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml.config import Neutral, child, configurable, require, unused
from ml.layers.activations import Activation, silu
from ml.layers.checks import heads_or_default, positive, positive_float
from ml.layers.children import optional_child
from ml.layers.context import Context
from ml.layers.linear import Linear, Projections
from ml.layers.mixers.recurrent_mixer import RecurrentMixer
from ml.layers.normalization import RMSNorm
from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule


@configurable(neutral={"kernel": Neutral(rounding=True)})
class LightningAttention(RecurrentMixer):
    """Linear attention with a constant decay of each head (Qin et al. 2024, lightning attention-2; MiniMax-01).

        S_t = exp(-s) S_{t-1} + k_t v_tᵀ,   o_t = q_t S_t,   output(norm(o) · sigmoid(gate(x)))

    q, k and v are activations of projections, and head n of N decays by s = decay_scale · 2^(-8 n / N), n = 1, ..., N.

    Args:
        hidden_size: Width of the residual stream, H.
        num_heads: Number of heads, N; None is H / 128.
        head_size: Size of a head, D; None is H / N.
        activation: Constructor of the activation of query, key and value.
        decay_scale: Factor of the decay rates; in MiniMax-01 it falls with the depth, 1 - layer / (layers - 1).
        norm: Constructor of the normalization over all heads; None applies none.
        chunk_size: Tokens that `ChunkedRecurrence` computes at once.
        kernel: Constructor of the recurrence kernel.
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    rule = Rule.STATE_SPACE_DUALITY

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int | None = None,
        head_size: int | None = None,
        activation: Activation = silu,
        decay_scale: float = 1.0,
        norm: Callable[..., nn.Module] | None = RMSNorm,
        chunk_size: int = 64,
        kernel: Callable[..., ChunkedRecurrence] = ChunkedRecurrence,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_heads = heads_or_default(hidden_size, num_heads)
        if head_size is None:
            message = f"must divide hidden_size ({hidden_size}) where head_size is None, not {self.num_heads}"
            require(hidden_size % self.num_heads == 0, "num_heads", message)
            head_size = max(hidden_size // self.num_heads, 1)
        self.head_size = positive("head_size", head_size)
        self.chunk_size = positive("chunk_size", chunk_size)
        self.build_kernel(kernel)
        unused(not self.kernel.takes_chunk_size, "chunk_size", "kernel")
        self.decay_scale = positive_float("decay_scale", decay_scale)
        self.first_head, self.total_heads = 0, self.num_heads  # of those that are computed here, and of all
        size = self.num_heads * self.head_size
        self.query = child("query", linear, hidden_size, size)
        self.key = child("key", linear, hidden_size, size)
        self.value = child("value", linear, hidden_size, size)
        self.gate = child("gate", linear, hidden_size, size)
        self.projections = child("projections", Projections, (self.query, self.key, self.value, self.gate))
        self.activation = child("activation", activation)
        self.norm = optional_child("norm", norm, size)
        self.output = child("output", linear, size, hidden_size)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        *parts, gate = self.projections(x)
        sizes = (self.num_heads, self.head_size)
        query, key, value = (self.activation(part).unflatten(-1, sizes) for part in parts)
        y = self.scan(query, key, value, context).flatten(2).to(gate.dtype)  # (B, T, N D)
        y = y if self.norm is None else self.norm(y)
        return self.output(y * torch.sigmoid(gate))  # (B, T, H)

    def scan(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> Tensor:
        """The recurrence of each head (B, T, N, D), from the state that the context has kept; float32 at least."""
        wide = torch.promote_types(value.dtype, torch.float32)
        head = torch.arange(self.num_heads, dtype=wide, device=value.device) + self.first_head
        rates = -self.decay_scale * torch.exp2(-8.0 * (head + 1.0) / self.total_heads)
        steps = torch.ones(value.shape[:3], dtype=wide, device=value.device)
        starts, kept = context.document_starts(), context.state(self)
        y, state = self.kernel.state_space_duality(value, steps, rates, key, query, kept, starts, self.chunk_size)
        context.keep(self, state)
        return y

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Five operations an entry of the states forward (its input, decay, sum, output), ten backward."""
        return 15.0 * self.num_heads * self.head_size**2

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_size={self.head_size}, chunk_size={self.chunk_size}"
