"""Mamba."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import Neutral, child, configurable
from ml.layers.activations import Activation, silu
from ml.layers.checks import positive
from ml.layers.children import optional_child, undecayed_child
from ml.layers.context import Context
from ml.layers.convolution import CausalConvolution
from ml.layers.initialization import fan_in_uniform, ones
from ml.layers.linear import Linear, Projections
from ml.layers.mixers.recurrent_mixer import RecurrentMixer
from ml.layers.mixers.state_space_initialization import log_index, time_step_bias
from ml.layers.recurrences.chunked import ChunkedRecurrence, Rule


@configurable(neutral={"kernel": Neutral(rounding=True)})
class Mamba(RecurrentMixer):
    """Selective state-space layer (Gu and Dao 2023, algorithm 2): each of F channels u = convolution(x) has a state h
    of size N.

        h_t = exp(dt_t A) · h_{t-1} + dt_t B_t u_t,   y_t = C_t h_t + D u_t,   output(y · activation(gate))

    A = -exp(A_log), B and C are projections of u, and dt = softplus(dt(dt_down(u)) + dt_bias). `dt_bias` is a parameter
    beside the projection `dt`, so `Linear.bias = False` does not remove it.

    Args:
        hidden_size: Width of the residual stream, H.
        intermediate_size: Number of channels, F; None is 2 H.
        state_size: State size of a channel, N.
        dt_rank: Rank of the projection of dt; None is H / 16, rounded up.
        convolution: Constructor of the convolution.
        activation: Constructor of the activation of the gate.
        dt_norm: Constructor of the normalization of dt_down(u) (Jamba; Falcon Mamba uses `@FixedRMSNorm`); None applies
            none.
        B_norm: Constructor of the normalization of B; None applies none.
        C_norm: Constructor of the normalization of C; None applies none.
        linear: Constructor of the projections.
        kernel: Constructor of the recurrence kernel.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    rule = Rule.SELECTIVE_SCAN

    def __init__(
        self,
        hidden_size: int,
        *,
        intermediate_size: int | None = None,
        state_size: int = 16,
        dt_rank: int | None = None,
        convolution: Callable[..., nn.Module] = CausalConvolution,
        activation: Activation = silu,
        dt_norm: Callable[..., nn.Module] | None = None,
        B_norm: Callable[..., nn.Module] | None = None,
        C_norm: Callable[..., nn.Module] | None = None,
        linear: Callable[..., nn.Module] = Linear,
        kernel: Callable[..., ChunkedRecurrence] = ChunkedRecurrence,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        size = 2 * hidden_size if intermediate_size is None else positive("intermediate_size", intermediate_size)
        self.intermediate_size = size
        self.state_size = positive("state_size", state_size)
        self.dt_rank = -(-hidden_size // 16) if dt_rank is None else positive("dt_rank", dt_rank)

        self.x = child("x", linear, hidden_size, size)
        self.gate = child("gate", linear, hidden_size, size)
        self.projections = child("projections", Projections, (self.x, self.gate))
        self.convolution = child("convolution", convolution, size)
        self.dt_down = child("dt_down", linear, size, self.dt_rank, defaults={"bias": False})
        self.B = child("B", linear, size, self.state_size, defaults={"bias": False})
        self.C = child("C", linear, size, self.state_size, defaults={"bias": False})
        self.selection = child("selection", Projections, (self.dt_down, self.B, self.C))
        self.dt_norm = optional_child("dt_norm", dt_norm, self.dt_rank)
        self.B_norm = optional_child("B_norm", B_norm, self.state_size)
        self.C_norm = optional_child("C_norm", C_norm, self.state_size)
        dt_defaults = {"bias": False, "weight_initialization": fan_in_uniform}
        self.dt = child("dt", linear, self.dt_rank, size, defaults=dt_defaults)
        self.activation = child("activation", activation)
        self.build_kernel(kernel)
        self.output = child("output", linear, size, hidden_size)
        self.dt_bias = undecayed_child("dt_bias", (size,), time_step_bias)
        self.A_log = undecayed_child("A_log", (size, self.state_size), log_index)
        self.D = undecayed_child("D", (size,), ones)

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The convolution."""
        return {"convolution": self.convolution}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x, gate = self.projections(x)  # (B, T, F)
        x = self.convolution(x, context)
        y = self.scan(x, context) * self.activation(gate)  # float32 at least
        return self.output(y.to(x.dtype))  # (B, T, H)

    def scan(self, x: Tensor, context: Context) -> Tensor:
        """The state-space model over (B, T, F), from the state that the context has kept."""
        wide = torch.promote_types(x.dtype, torch.float32)
        dt, B, C = self.select(x)  # (B, T, F), (B, T, N), (B, T, N)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        A = -torch.exp(self.A_log.to(wide))
        y, state = self.kernel.selective_scan(x, dt, A, B, C, context.state(self), context.document_starts())
        context.keep(self, state)
        return y + x * self.D.to(wide)

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt, without its bias and softplus, B and C of each token."""
        dt, B, C = self.selection(x)
        if self.dt_norm is not None:
            dt = self.dt_norm(dt)
        if self.B_norm is not None:
            B = self.B_norm(B)
        if self.C_norm is not None:
            C = self.C_norm(C)
        return self.dt(dt), B, C

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Six operations an entry of the state forward (its exponent, input, decay, sum, output), twelve backward."""
        return 18.0 * self.intermediate_size * self.state_size

    def extra_repr(self) -> str:
        sizes = f"intermediate_size={self.intermediate_size}, state_size={self.state_size}"
        return f"{sizes}, dt_rank={self.dt_rank}"
