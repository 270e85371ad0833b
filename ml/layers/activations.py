"""Activations: configurable functions that act on each element."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable

Activation = Callable[..., Tensor]


@configurable
def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), also called Swish (Ramachandran et al. 2017)."""
    return F.silu(x)


@configurable
def gelu(x: Tensor, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    """x · Φ(x) (Hendrycks and Gimpel 2016); "tanh" is the approximation that GPT-2 was trained with."""
    return F.gelu(x, approximate=approximate)


@configurable
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


@configurable
def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021, Primer)."""
    return F.relu(x).square()


@configurable
def tanh(x: Tensor) -> Tensor:
    """tanh(x)."""
    return torch.tanh(x)
