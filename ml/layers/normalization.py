"""Normalizations over the last dimension. Statistics are at least float32; the output has the input's dtype."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import child, configurable, require, unused
from ml.layers.activations import Activation, silu
from ml.layers.checks import positive, positive_float
from ml.layers.children import bias_child, weight_child
from ml.layers.initialization import Initialization, ones, zeros
from ml.layers.protocol import NoProducts


def checked_groups(size: int, num_groups: int) -> int:
    """Requires a number of groups that divides the channels, and returns it."""
    num_groups = positive("num_groups", num_groups)
    require(size % num_groups == 0, "num_groups", f"must divide the size {size}, not be {num_groups}")
    return num_groups


@configurable
class RMSNorm(NoProducts):
    """y = w · x / √(mean(x²) + epsilon) (Zhang and Sennrich 2019).

    Args:
        size: Number of channels; the last dimension of the input.
        num_groups: Number of equal groups of channels, each normalized separately.
        epsilon: Added to the mean square, against division by zero.
        zero_centered: Stores w - 1 as the parameter, so that weight decay pulls w to 1 (Gemma).
        weight_initialization: Initialization of the stored weight; None starts from w = 1.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        size: int,
        num_groups: int = 1,
        *,
        epsilon: float = 1e-5,
        zero_centered: bool = False,
        weight_initialization: Initialization | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_groups = checked_groups(size, num_groups)
        self.epsilon = positive_float("epsilon", epsilon)
        self.zero_centered = zero_centered
        self.weight = weight_child(
            (size,), weight_initialization or (zeros if zero_centered else ones), is_decayed=False
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = self.weight.to(wide.dtype)  # rounded to bfloat16, a weight within 2^-8 of 1 would be 1
        return (self.normalized(wide) * (1 + weight if self.zero_centered else weight)).to(x.dtype)

    def normalized(self, wide: Tensor) -> Tensor:
        """Each group of channels of (..., size) over its root mean square."""
        if self.num_groups == 1:
            return root_mean_square_normalized(wide, self.epsilon)
        return root_mean_square_normalized(wide.unflatten(-1, (self.num_groups, -1)), self.epsilon).flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}, zero_centered={self.zero_centered}"


def root_mean_square_normalized(x: Tensor, epsilon: float) -> Tensor:
    """x / √(mean(x²) + epsilon) over the last dimension."""
    x_wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x_wide * torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


@configurable
class FixedRMSNorm(NoProducts):
    """RMSNorm without a weight: y = x / √(mean(x²) + epsilon).

    Args:
        size: Number of channels; the last dimension of the input.
        num_groups: Number of equal groups of channels, each normalized separately.
        epsilon: Added to the mean square, against division by zero.
    """

    def __init__(self, size: int, num_groups: int = 1, *, epsilon: float = 1e-5):
        super().__init__()
        self.num_groups = checked_groups(size, num_groups)
        self.epsilon = positive_float("epsilon", epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalized(x)

    def normalized(self, x: Tensor) -> Tensor:
        """Each group of channels of (..., size) over its root mean square."""
        if self.num_groups == 1:
            return root_mean_square_normalized(x, self.epsilon)
        return root_mean_square_normalized(x.unflatten(-1, (self.num_groups, -1)), self.epsilon).flatten(-2)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"


@configurable
class GatedRMSNorm(NoProducts):
    """RMSNorm with a gate z, over groups of channels (Mamba-2, section 7.1; Yang et al. 2024, gated delta net).

    "before": y = w · norm(x · activation(z)); "after": y = w · norm(x) · activation(z).

    Args:
        size: Number of channels; the last dimension of the input.
        num_groups: Number of equal groups of channels, each normalized separately.
        gate_position: Position of the gate: before or after the normalization.
        activation: Constructor of the activation of the gate.
        epsilon: Added to the mean square, against division by zero.
        weight_initialization: Initialization of w.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        size: int,
        *,
        num_groups: int = 1,
        gate_position: Literal["before", "after"] = "before",
        activation: Activation = silu,
        epsilon: float = 1e-5,
        weight_initialization: Initialization = ones,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_groups = checked_groups(size, num_groups)
        self.gate_position = gate_position
        self.activation = child("activation", activation)
        self.epsilon = positive_float("epsilon", epsilon)
        self.weight = weight_child((size,), weight_initialization, is_decayed=False)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        y, gate = x.to(wide), self.activation(gate.to(wide))
        if self.gate_position == "before":
            y = y * gate
        grouped = y.unflatten(-1, (self.num_groups, -1))  # (..., G, size / G)
        y = self.normalized(grouped).flatten(-2) * self.weight.to(wide)
        if self.gate_position == "after":
            y = y * gate
        return y.to(x.dtype)

    def normalized(self, grouped: Tensor) -> Tensor:
        """Groups of channels (..., G, size / G), each over its root mean square."""
        return root_mean_square_normalized(grouped, self.epsilon)

    def extra_repr(self) -> str:
        groups = f"num_groups={self.num_groups}, gate_position={self.gate_position}"
        return f"{self.weight.shape[0]}, {groups}, epsilon={self.epsilon}"


@configurable
class LayerNorm(NoProducts):
    """y = w · (x - mean(x)) / √(var(x) + epsilon) + b (Ba et al. 2016).

    Args:
        size: Number of channels; the last dimension of the input.
        num_groups: Number of equal groups of channels, each normalized separately.
        epsilon: Added to the variance, against division by zero.
        scale: Multiplies by w, (size); False for the norm of OLMo 1, without `bias` too.
        bias: Adds b, (size), to the output.
        zero_centered: Stores w - 1 as the parameter, so that weight decay pulls w to 1 (Nemotron, "layernorm1p").
        weight_initialization: Initialization of the stored weight; None starts from w = 1.
        bias_initialization: Initialization of b.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        size: int,
        num_groups: int = 1,
        *,
        epsilon: float = 1e-5,
        scale: bool = True,
        bias: bool = True,
        zero_centered: bool = False,
        weight_initialization: Initialization | None = None,
        bias_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.size = size
        self.num_groups = checked_groups(size, num_groups)
        self.epsilon = positive_float("epsilon", epsilon)
        unused(not scale, "zero_centered", "scale")
        unused(not scale, "weight_initialization", "scale")
        self.zero_centered = zero_centered
        initialization = weight_initialization or (zeros if zero_centered else ones)
        self.weight = weight_child((size,), initialization, is_decayed=False) if scale else None
        self.bias = bias_child(bias, size, bias_initialization)

    def forward(self, x: Tensor) -> Tensor:
        # In bfloat16 torch's backward sums the gradients of w and b in bfloat16: 5 % off after 2,000 tokens.
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = None if self.weight is None else self.weight.to(wide)
        if weight is not None and self.zero_centered:
            weight = 1 + weight
        bias = None if self.bias is None else self.bias.to(wide)
        if self.num_groups == 1:
            return F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, self.epsilon).to(x.dtype)
        y = self.normalized(x.to(wide))
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(x.dtype)

    def normalized(self, wide: Tensor) -> Tensor:
        """Each group of channels of (..., size) without its mean, over its standard deviation."""
        grouped = wide.unflatten(-1, (self.num_groups, -1))
        return F.layer_norm(grouped, grouped.shape[-1:], eps=self.epsilon).flatten(-2)

    def extra_repr(self) -> str:
        parts = f"scale={self.weight is not None}, bias={self.bias is not None}, zero_centered={self.zero_centered}"
        return f"{self.size}, epsilon={self.epsilon}, {parts}"


@configurable
class NoNorm(NoProducts):
    """Identity: y = x.

    Args:
        size: Number of channels; the last dimension of the input.
    """

    def __init__(self, size: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
