"""Initializations: configurables that return a function which fills a tensor in place from a generator.

The function is called as `fill(tensor, generator=generator)` with a float32 tensor on the CPU. The fans follow the
shape `(out, in, *receptive_field)`, which is the layout of every weight in Juniper.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ml.config import configurable, require
from ml.layers.checks import finite, non_negative, positive, positive_float

Fill = Callable[..., object]  # what is returned is of no use
Initialization = Callable[..., Fill]


def fans(shape: torch.Size) -> tuple[int, int]:
    """Returns (fan in, fan out) of a weight. Raises ValueError for fewer than two dimensions."""
    if len(shape) < 2:
        raise ValueError(f"an initialization that scales with the fan needs two dimensions or more, not {tuple(shape)}")
    receptive_field = math.prod(shape[2:])
    return shape[1] * receptive_field, shape[0] * receptive_field


@configurable
def normal(*, std: float = 0.02, mean: float = 0.0) -> Fill:
    """N(mean, std²).

    Args:
        std: Standard deviation.
        mean: Mean.
    """
    return partial(Tensor.normal_, mean=finite("mean", mean), std=non_negative("std", std))


@configurable
def truncated_normal(*, std: float = 0.02, mean: float = 0.0, cutoff: float = 3.0) -> Fill:
    """N(mean, std²), truncated on both sides.

    Args:
        std: Standard deviation before truncation.
        mean: Mean.
        cutoff: Distance of the bounds from the mean, in standard deviations.
    """
    width = positive_float("std", std) * positive_float("cutoff", cutoff)
    mean = finite("mean", mean)
    return partial(torch.nn.init.trunc_normal_, mean=mean, std=std, a=mean - width, b=mean + width)


@configurable
def scaled_normal(*, std: float = 0.02, num_layers: int | None = None) -> Fill:
    """N(0, std² / n), for the projections of the n branches that write into the residual stream (GPT-2, section 2.3).

    So the variance of the residual stream stays constant over the depth. A block has two branches, the mixer and the
    MLP; one without an MLP has one.

    Args:
        std: Standard deviation before scaling.
        num_layers: Depth to scale by, n = 2 num_layers; None counts the branches in the outermost block sequence around
            the parameter.
    """
    num_branches = None if num_layers is None else 2 * positive("num_layers", num_layers)
    return partial(_fill_scaled_normal, std=non_negative("std", std), num_branches=num_branches)


def _fill_scaled_normal(tensor: Tensor, *, std: float, num_branches: int | None, generator: torch.Generator) -> None:
    if num_branches is None:
        raise ValueError("scaled_normal.num_layers must be set for a parameter outside of a block sequence")
    tensor.normal_(0.0, std / math.sqrt(num_branches), generator=generator)


@configurable
def uniform(*, low: float = -0.02, high: float = 0.02) -> Fill:
    """U(low, high).

    Args:
        low: Lower bound.
        high: Upper bound.
    """
    require(finite("low", low) <= finite("high", high), "low", f"must not be above high ({high}), and is {low}")
    return partial(_fill_uniform, low=low, high=high)


def _fill_uniform(tensor: Tensor, *, low: float, high: float, generator: torch.Generator) -> None:
    tensor.uniform_(low, high, generator=generator)


@configurable
def constant(*, value: float = 0.0) -> Fill:
    """The same value everywhere.

    Args:
        value: The value.
    """
    return partial(_fill_constant, value=value)


@configurable
def zeros() -> Fill:
    """0 everywhere."""
    return partial(_fill_constant, value=0.0)


@configurable
def ones() -> Fill:
    """1 everywhere."""
    return partial(_fill_constant, value=1.0)


def _fill_constant(tensor: Tensor, *, value: float, generator: torch.Generator) -> None:
    tensor.fill_(value)


@configurable
def xavier_uniform(*, gain: float = 1.0) -> Fill:
    """U(-a, a), a = gain √(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16).

    Args:
        gain: Factor of the bound.
    """
    return partial(_fill_xavier_uniform, gain=non_negative("gain", gain))


def _fill_xavier_uniform(tensor: Tensor, *, gain: float, generator: torch.Generator) -> None:
    bound = gain * math.sqrt(6.0 / sum(fans(tensor.shape)))
    tensor.uniform_(-bound, bound, generator=generator)


@configurable
def xavier_normal(*, gain: float = 1.0) -> Fill:
    """N(0, gain² · 2 / (fan_in + fan_out)) (Glorot and Bengio 2010).

    Args:
        gain: Factor of the standard deviation.
    """
    return partial(_fill_xavier_normal, gain=non_negative("gain", gain))


def _fill_xavier_normal(tensor: Tensor, *, gain: float, generator: torch.Generator) -> None:
    tensor.normal_(0.0, gain * math.sqrt(2.0 / sum(fans(tensor.shape))), generator=generator)


@configurable
def fan_in_uniform(*, gain: float = 1.0) -> Fill:
    """U(-a, a), a = gain / √fan_in: the default of torch's linear and convolution layers.

    Args:
        gain: Factor of the bound.
    """
    return partial(_fill_fan_in_uniform, gain=non_negative("gain", gain))


def _fill_fan_in_uniform(tensor: Tensor, *, gain: float, generator: torch.Generator) -> None:
    bound = gain / math.sqrt(fans(tensor.shape)[0])
    tensor.uniform_(-bound, bound, generator=generator)


@configurable
def kaiming_uniform(*, gain: float = math.sqrt(2.0), mode: Literal["fan_in", "fan_out"] = "fan_in") -> Fill:
    """U(-a, a), a = gain √(3 / fan) (He et al. 2015).

    Args:
        gain: Factor of the bound; √2 suits ReLU.
        mode: Fan to scale by: "fan_in" preserves the variance of the forward pass, "fan_out" that of the backward pass.
    """
    return partial(_fill_kaiming_uniform, gain=non_negative("gain", gain), mode=mode)


def _fill_kaiming_uniform(tensor: Tensor, *, gain: float, mode: str, generator: torch.Generator) -> None:
    bound = math.sqrt(3.0) * _kaiming_std(tensor, gain, mode)
    tensor.uniform_(-bound, bound, generator=generator)


@configurable
def kaiming_normal(*, gain: float = math.sqrt(2.0), mode: Literal["fan_in", "fan_out"] = "fan_in") -> Fill:
    """N(0, gain² / fan) (He et al. 2015, equations 10 and 14).

    Args:
        gain: Factor of the standard deviation; √2 suits ReLU.
        mode: Fan to scale by: "fan_in" preserves the variance of the forward pass, "fan_out" that of the backward pass.
    """
    return partial(_fill_kaiming_normal, gain=non_negative("gain", gain), mode=mode)


def _fill_kaiming_normal(tensor: Tensor, *, gain: float, mode: str, generator: torch.Generator) -> None:
    tensor.normal_(0.0, _kaiming_std(tensor, gain, mode), generator=generator)


def _kaiming_std(tensor: Tensor, gain: float, mode: str) -> float:
    fan_in, fan_out = fans(tensor.shape)
    return gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)
