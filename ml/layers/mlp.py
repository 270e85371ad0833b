"""Feed-forward layers."""

from collections.abc import Callable

from torch import Tensor, nn

from ml.config import child, configurable
from ml.layers.activations import Activation, gelu, silu
from ml.layers.checks import finite, positive, positive_float
from ml.layers.context import Context
from ml.layers.linear import Linear, Projections
from ml.layers.protocol import NoProducts


@configurable
class MLP(NoProducts):
    """Feed-forward layer: y = down(activation(up(x))).

    Args:
        hidden_size: Width of the residual stream, H.
        intermediate_size: Width of the hidden layer, F; None is 4 H.
        activation: Constructor of the activation.
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        intermediate_size: int | None = None,
        activation: Activation = gelu,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        if intermediate_size is None:
            intermediate_size = 4 * hidden_size
        intermediate_size = positive("intermediate_size", intermediate_size)
        self.activation = child("activation", activation)
        self.up = child("up", linear, hidden_size, intermediate_size)
        self.down = child("down", linear, intermediate_size, hidden_size)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return self.down(self.activation(self.up(x)))  # (B, T, H) -> (B, T, F) -> (B, T, H)


@configurable
class GatedMLP(NoProducts):
    """Gated feed-forward layer: y = down(activation(gate(x)) · up(x)) (Shazeer 2020, GLU variants).

    gpt-oss: `limit = 7.0`, `up_offset = 1.0` and `silu.beta = 1.702`.

    Args:
        hidden_size: Width of the residual stream, H.
        intermediate_size: Width of the hidden layer, F; None is 8/3 H, rounded up to a multiple of 64, which has the
            parameter count of an MLP with 4 H.
        activation: Constructor of the activation of the gate.
        limit: Clamps up(x) to [-limit, limit] and gate(x) to at most it; None clamps neither.
        up_offset: Added to up(x).
        gate_scale: Factor of gate(x) before the activation (Falcon-H1).
        output_scale: Factor of y (Falcon-H1).
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        intermediate_size: int | None = None,
        activation: Activation = silu,
        limit: float | None = None,
        up_offset: float = 0.0,
        gate_scale: float = 1.0,
        output_scale: float = 1.0,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        if intermediate_size is None:
            intermediate_size = -(-8 * hidden_size // (3 * 64)) * 64
        intermediate_size = positive("intermediate_size", intermediate_size)
        self.activation = child("activation", activation)
        self.limit = None if limit is None else positive_float("limit", limit)
        self.up_offset = finite("up_offset", up_offset)
        self.gate_scale = finite("gate_scale", gate_scale)
        self.output_scale = finite("output_scale", output_scale)
        self.gate = child("gate", linear, hidden_size, intermediate_size)
        self.up = child("up", linear, hidden_size, intermediate_size)
        self.down = child("down", linear, intermediate_size, hidden_size)
        self.projections = child("projections", Projections, (self.gate, self.up))

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        gate, up = self.projections(x)  # (B, T, H) -> (B, T, F)
        return self.scaled(self.down(self.gated(gate, up)))  # (B, T, F) -> (B, T, H)

    def scaled(self, y: Tensor) -> Tensor:
        """Output from that of `down`."""
        return y if self.output_scale == 1.0 else self.output_scale * y

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Input of `down` from the outputs of the other two projections, (..., F) each."""
        if self.gate_scale != 1.0:
            gate = self.gate_scale * gate
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return self.activation(gate) * (up + self.up_offset if self.up_offset else up)
