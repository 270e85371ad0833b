"""Normalizations over the last dimension. Statistics are at least float32; the output has the input's dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import child, configurable
from ml.layers.checks import positive_float
from ml.layers.initialization import Initialization, ones, zeros
from ml.layers.parameter import Parameter, checked_lr_scale


@configurable
class RMSNorm(nn.Module):
    """y = w · x / √(mean(x²) + epsilon) (Zhang and Sennrich 2019)."""

    def __init__(
        self,
        size: int,
        *,
        epsilon: float = 1e-5,
        weight_initialization: Initialization = ones,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.epsilon = positive_float("epsilon", epsilon)
        self.lr_scale = checked_lr_scale(lr_scale)
        self.weight = child(
            "weight",
            Parameter,
            (size,),
            defaults={"weight_decay": 0.0},
            derived={"initialization": weight_initialization},
        )

    def forward(self, x: Tensor) -> Tensor:
        x_wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (x_wide * scale).to(x.dtype) * self.weight.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}"


@configurable
class LayerNorm(nn.Module):
    """y = w · (x - mean(x)) / √(var(x) + epsilon) + b (Ba et al. 2016)."""

    def __init__(
        self,
        size: int,
        *,
        epsilon: float = 1e-5,
        bias: bool = True,
        weight_initialization: Initialization = ones,
        bias_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.epsilon = positive_float("epsilon", epsilon)
        self.lr_scale = checked_lr_scale(lr_scale)
        self.weight = child(
            "weight",
            Parameter,
            (size,),
            defaults={"weight_decay": 0.0},
            derived={"initialization": weight_initialization},
        )
        self.bias = None
        if bias:
            self.bias = child(
                "bias",
                Parameter,
                (size,),
                defaults={"weight_decay": 0.0},
                derived={"initialization": bias_initialization},
            )

    def forward(self, x: Tensor) -> Tensor:
        # In bfloat16 the library's backward adds up the gradients of w and b in bfloat16: 5 % off after 2,000 tokens.
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), bias, self.epsilon).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}, bias={self.bias is not None}"


@configurable
class NoNorm(nn.Module):
    """y = x."""

    def __init__(self, size: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
