"""Initializations: configurable functions that fill a tensor in place from a generator.

Each is called as `initialization(tensor, generator=generator)` with a float32 tensor on the CPU. The fans follow the
shape `(out, in, *receptive_field)`, which is the layout of every weight in Juniper.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ml.config import configurable
from ml.layers.checks import finite, non_negative, positive, positive_float

Initialization = Callable[..., Any]


def fans(shape: torch.Size) -> tuple[int, int]:
    """Returns (fan in, fan out) of a weight. Raises ValueError for fewer than two dimensions."""
    if len(shape) < 2:
        raise ValueError(
            f"an initialization that scales with the fan needs at least two dimensions, not {tuple(shape)}"
        )
    receptive_field = math.prod(shape[2:])
    return shape[1] * receptive_field, shape[0] * receptive_field


@configurable
def normal(tensor: Tensor, *, generator: torch.Generator, std: float = 0.02, mean: float = 0.0) -> None:
    """N(mean, std²)."""
    tensor.normal_(finite("mean", mean), non_negative("std", std), generator=generator)


@configurable
def truncated_normal(
    tensor: Tensor, *, generator: torch.Generator, std: float = 0.02, mean: float = 0.0, cutoff: float = 3.0
) -> None:
    """N(mean, std²) cut off at `cutoff` times std on both sides. `std` is the one before the cut."""
    positive_float("std", std)
    width = std * positive_float("cutoff", cutoff)
    torch.nn.init.trunc_normal_(tensor, mean, std, mean - width, mean + width, generator=generator)


@configurable
def scaled_normal(
    tensor: Tensor, *, generator: torch.Generator, std: float = 0.02, num_layers: int | None = None
) -> None:
    """N(0, std² / (2 num_layers)), for the projections that write into the residual stream (GPT-2, section 2.3).

    Each layer adds two such projections, so the residual stream keeps its variance over the depth. `num_layers` None is
    the number of blocks in the outermost block sequence that holds the parameter.
    """
    if num_layers is None:
        raise ValueError("scaled_normal.num_layers must be set for a parameter outside of a block sequence")
    tensor.normal_(
        0.0, non_negative("std", std) / math.sqrt(2 * positive("num_layers", num_layers)), generator=generator
    )


@configurable
def uniform(tensor: Tensor, *, generator: torch.Generator, low: float = -0.02, high: float = 0.02) -> None:
    """U(low, high)."""
    if not low <= high:
        raise ValueError(f"uniform.low ({low}) must not be above uniform.high ({high})")
    tensor.uniform_(low, high, generator=generator)


@configurable
def constant(tensor: Tensor, *, generator: torch.Generator, value: float = 0.0) -> None:
    """One value everywhere."""
    tensor.fill_(value)


@configurable
def zeros(tensor: Tensor, *, generator: torch.Generator) -> None:
    """0 everywhere."""
    tensor.zero_()


@configurable
def ones(tensor: Tensor, *, generator: torch.Generator) -> None:
    """1 everywhere."""
    tensor.fill_(1.0)


@configurable
def xavier_uniform(tensor: Tensor, *, generator: torch.Generator, gain: float = 1.0) -> None:
    """U(-a, a), a = gain √(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16)."""
    bound = non_negative("gain", gain) * math.sqrt(6.0 / sum(fans(tensor.shape)))
    tensor.uniform_(-bound, bound, generator=generator)


@configurable
def xavier_normal(tensor: Tensor, *, generator: torch.Generator, gain: float = 1.0) -> None:
    """N(0, gain² · 2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    tensor.normal_(0.0, non_negative("gain", gain) * math.sqrt(2.0 / sum(fans(tensor.shape))), generator=generator)


@configurable
def kaiming_uniform(
    tensor: Tensor,
    *,
    generator: torch.Generator,
    gain: float = math.sqrt(2.0),
    mode: Literal["fan_in", "fan_out"] = "fan_in",
) -> None:
    """U(-a, a), a = gain √(3 / fan) (He et al. 2015); the default gain √2 is the one for ReLU."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, gain, mode)
    tensor.uniform_(-bound, bound, generator=generator)


@configurable
def kaiming_normal(
    tensor: Tensor,
    *,
    generator: torch.Generator,
    gain: float = math.sqrt(2.0),
    mode: Literal["fan_in", "fan_out"] = "fan_in",
) -> None:
    """N(0, gain² / fan) (He et al. 2015, equations 10 and 14); the default gain √2 is the one for ReLU."""
    tensor.normal_(0.0, _kaiming_std(tensor, gain, mode), generator=generator)


def _kaiming_std(tensor: Tensor, gain: float, mode: str) -> float:
    fan_in, fan_out = fans(tensor.shape)
    return non_negative("gain", gain) / math.sqrt(fan_in if mode == "fan_in" else fan_out)
