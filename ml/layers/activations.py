"""Activations: configurables that return a function which acts on each element."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable
from ml.layers.checks import positive_float

Elementwise = Callable[[Tensor], Tensor]
Activation = Callable[..., Elementwise]


@configurable
def silu(*, beta: float = 1.0) -> Elementwise:
    """x · sigmoid(beta · x), also called Swish (Ramachandran et al. 2017).

    Args:
        beta: Factor within the sigmoid; 1.702 in gpt-oss.
    """
    return F.silu if beta == 1.0 else partial(_swish, beta=positive_float("beta", beta))


def _swish(x: Tensor, beta: float) -> Tensor:
    return x * torch.sigmoid(beta * x)


@configurable
def gelu(*, approximate: Literal["none", "tanh"] = "none") -> Elementwise:
    """x · Φ(x) (Hendrycks and Gimpel 2016).

    Args:
        approximate: "none" is exact; "tanh" is the approximation that GPT-2 was trained with.
    """
    return partial(F.gelu, approximate=approximate)


@configurable
def relu() -> Elementwise:
    """max(x, 0)."""
    return F.relu


@configurable
def relu_squared() -> Elementwise:
    """max(x, 0)² (So et al. 2021, Primer)."""
    return _relu_squared


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


@configurable
def tanh() -> Elementwise:
    """tanh(x)."""
    return torch.tanh


@configurable
def sigmoid() -> Elementwise:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid
