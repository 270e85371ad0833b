"""Initial values of state-space mixers: how fast a state forgets, and how far one step goes."""

import math
from functools import partial

import torch
from torch import Tensor

from ml.config import configurable, require
from ml.layers.checks import positive_float
from ml.layers.initialization import Fill


@configurable
def log_index() -> Fill:
    """log(1), log(2), ..., log(N) along the last dimension: with A = -exp(·) this is S4D-Real (Gu et al. 2022)."""
    return _fill_log_index


def _fill_log_index(tensor: Tensor, *, generator: torch.Generator) -> None:
    tensor.copy_(torch.arange(1, tensor.shape[-1] + 1, dtype=tensor.dtype).log())


@configurable
def log_of_uniform(*, low: float = 1.0, high: float = 16.0) -> Fill:
    """log(U(low, high)), so that -exp(·) is uniform between -high and -low (Mamba-2).

    Args:
        low: Lower bound, above 0.
        high: Upper bound.
    """
    low, high = _checked_range("low", low, "high", high)
    return partial(_fill_log_of_uniform, low=low, high=high)


def _fill_log_of_uniform(tensor: Tensor, *, low: float, high: float, generator: torch.Generator) -> None:
    tensor.uniform_(low, high, generator=generator).log_()


@configurable
def time_step_bias(*, dt_min: float = 0.001, dt_max: float = 0.1, dt_floor: float = 1e-4) -> Fill:
    """b with softplus(b) = max(dt, dt_floor) and log(dt) uniform in [log dt_min, log dt_max] (Mamba, section 3.6).

    Args:
        dt_min: Least step before the floor.
        dt_max: Greatest step.
        dt_floor: Lower bound of the step.
    """
    dt_min, dt_max = _checked_range("dt_min", dt_min, "dt_max", dt_max)
    return partial(_fill_time_step_bias, dt_min=dt_min, dt_max=dt_max, dt_floor=positive_float("dt_floor", dt_floor))


def _fill_time_step_bias(
    tensor: Tensor, *, dt_min: float, dt_max: float, dt_floor: float, generator: torch.Generator
) -> None:
    dt = tensor.uniform_(math.log(dt_min), math.log(dt_max), generator=generator).exp_().clamp_(min=dt_floor)
    # log(exp(dt) - 1), in a form that neither overflows nor cancels
    tensor.copy_(dt + torch.log(-torch.expm1(-dt)))


def _checked_range(low_name: str, low: float, high_name: str, high: float) -> tuple[float, float]:
    low, high = positive_float(low_name, low), positive_float(high_name, high)
    require(low <= high, low_name, f"must not be above {high_name} ({high}), and is {low}")
    return low, high
