"""Mamba-2."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import UNORDERED, Neutral, child, configurable, require, unused
from ml.layers.checks import finite, positive
from ml.layers.children import optional_child, undecayed_child
from ml.layers.context import Context
from ml.layers.convolution import CausalConvolution
from ml.layers.initialization import ones
from ml.layers.linear import Linear, Projections
from ml.layers.mixers.recurrent_mixer import RecurrentMixer
from ml.layers.mixers.state_space_initialization import log_of_uniform, time_step_bias
from ml.layers.normalization import GatedRMSNorm
from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule

_PARTS = ("gate", "x", "B", "C", "dt")


@configurable(neutral={"kernel": Neutral(rounding=True)})
class Mamba2(RecurrentMixer):
    """State-space layer with N heads of P channels, each with one decay per step and a state h of size P x S (Dao and
    Gu 2024, sections 6 and 7).

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ,   y_t = h_t C_t + D x_t,   output(norm(y, gate))

    A = -exp(A_log) and dt = softplus(dt(·) + dt_bias). gate, x, B, C and dt are all projections of the input; x, B and
    C pass through one convolution, and groups of heads share B and C.

    Args:
        hidden_size: Width of the residual stream, H.
        num_heads: Number of heads, N; None is intermediate_size / head_size.
        head_size: Channels of a head, P.
        intermediate_size: Number of channels, N P; None is num_heads · head_size, or 2 H without `num_heads`.
        state_size: State size, S.
        num_groups: Number of groups of heads that share B and C.
        chunk_size: Number of steps that `ChunkedRecurrence` computes as matrix products; it affects only the speed.
        kernel: Constructor of the recurrence kernel.
        dt_limit: Least and greatest dt.
        projection_scales: Factors of gate, x, B, C and dt before the convolution, by these names (Falcon-H1); None is 1
            for all.
        convolution: Constructor of the convolution.
        norm: Constructor of the gated normalization of the output; None computes y · silu(gate).
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    rule = Rule.STATE_SPACE_DUALITY

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int | None = None,
        head_size: int = 64,
        intermediate_size: int | None = None,
        state_size: int = 128,
        num_groups: int = 1,
        chunk_size: int = 64,
        kernel: Callable[..., ChunkedRecurrence] = ChunkedRecurrence,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        projection_scales: Annotated[dict[str, float], UNORDERED] | None = None,
        convolution: Callable[..., nn.Module] = CausalConvolution,
        norm: Callable[..., nn.Module] | None = GatedRMSNorm,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.head_size = positive("head_size", head_size)
        self.num_heads = self._checked_num_heads(hidden_size, num_heads, intermediate_size)
        self.state_size = positive("state_size", state_size)
        self.num_groups = positive("num_groups", num_groups)
        divides = self.num_heads % self.num_groups == 0
        require(divides, "num_groups", f"must divide the {self.num_heads} heads, not be {num_groups}")
        self.chunk_size = positive("chunk_size", chunk_size)
        self.build_kernel(kernel)
        unused(not self.kernel.takes_chunk_size, "chunk_size", "kernel")
        self.dt_limit = dt_limit
        require(0.0 <= dt_limit[0] < dt_limit[1], "dt_limit", f"must be a range of numbers from 0, not {dt_limit}")

        scales = dict.fromkeys(_PARTS, 1.0) if projection_scales is None else projection_scales
        require(scales.keys() == set(_PARTS), "projection_scales", f"must be given for {', '.join(_PARTS)}")
        self.projection_scales = [finite("projection_scales", scales.get(name, 1.0)) for name in _PARTS]

        size, group_size = self.num_heads * self.head_size, self.num_groups * self.state_size
        self.gate = child("gate", linear, hidden_size, size)
        self.x = child("x", linear, hidden_size, size)
        self.B = child("B", linear, hidden_size, group_size)
        self.C = child("C", linear, hidden_size, group_size)
        self.dt = child("dt", linear, hidden_size, self.num_heads, defaults={"bias": False})
        self.projections = child("projections", Projections, (self.gate, self.x, self.B, self.C, self.dt))
        self.convolution = child("convolution", convolution, size + 2 * group_size)
        self.norm = optional_child("norm", norm, size, derived={"num_groups": self.num_groups})
        self.output = child("output", linear, size, hidden_size)
        self.dt_bias = undecayed_child("dt_bias", (self.num_heads,), time_step_bias)
        self.A_log = undecayed_child("A_log", (self.num_heads,), log_of_uniform)
        self.D = undecayed_child("D", (self.num_heads,), ones)

    def _checked_num_heads(self, hidden_size: int, num_heads: int | None, intermediate_size: int | None) -> int:
        if intermediate_size is not None:
            intermediate_size = positive("intermediate_size", intermediate_size)
        if num_heads is None:
            size = 2 * hidden_size if intermediate_size is None else intermediate_size
            message = f"must divide intermediate_size ({size}) where num_heads is None, not be {self.head_size}"
            require(size % self.head_size == 0, "head_size", message)
            return max(size // self.head_size, 1)
        num_heads = positive("num_heads", num_heads)
        size = num_heads * self.head_size
        message = f"must be num_heads · head_size ({size}) or None, not {intermediate_size}"
        require(intermediate_size in (None, size), "intermediate_size", message)
        return num_heads

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The convolution."""
        return {"convolution": self.convolution}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        gate, *mixed, dt = self.project(x)
        sizes = [part.shape[-1] for part in mixed]
        x, B, C = self.convolution(torch.cat(mixed, dim=-1), context).split(sizes, dim=-1)
        x = x.unflatten(-1, (self.num_heads, self.head_size))  # (B, T, N, P)
        B, C = (part.unflatten(-1, (self.num_groups, self.state_size)) for part in (B, C))  # (B, T, G, S)
        y = self.scan(x, dt, B, C, context).flatten(2).to(gate.dtype)  # (B, T, F)
        y = y * F.silu(gate) if self.norm is None else self.norm(y, gate)
        return self.output(y)  # (B, T, H)

    def project(self, x: Tensor) -> list[Tensor]:
        """gate, x, B, C and dt, each with its factor."""
        parts = zip(self.projection_scales, self.projections(x), strict=True)
        return [part if scale == 1.0 else scale * part for scale, part in parts]

    def scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, context: Context) -> Tensor:
        """The state-space model of each head, from the state that the context has kept; float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))  # (B, T, N)
        if self.dt_limit != (0.0, math.inf):
            dt = dt.clamp(*self.dt_limit)
        A = -torch.exp(self.A_log.to(wide))
        starts, kept = context.document_starts(), context.state(self)
        y, state = self.kernel.state_space_duality(x, dt, A, B, C, kept, starts, self.chunk_size)
        context.keep(self, state)
        return y + x * self.D.to(wide)[:, None]

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Five operations an entry of the states forward (its input, decay, sum, output), ten backward."""
        return 15.0 * self.num_heads * self.head_size * self.state_size

    def extra_repr(self) -> str:
        heads = f"num_heads={self.num_heads}, head_size={self.head_size}"
        return f"{heads}, state_size={self.state_size}, num_groups={self.num_groups}"
