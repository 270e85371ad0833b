"""Precision of weights and computation."""

import abc
import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from ml.config import configurable
from ml.layers.walk import all_modules


class Precision(abc.ABC):
    """Dtypes of a run.

    Attributes:
        parameter_dtype: The dtype of weights, gradients and optimizer state.
        compute_dtype: The dtype of matrix products.
        rounds_stochastically: Whether the optimizer rounds updated weights stochastically.
    """

    parameter_dtype: torch.dtype
    compute_dtype: torch.dtype
    rounds_stochastically = False

    @abc.abstractmethod
    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Returns the context manager of the forward pass on `device`."""


@configurable
class Float32(Precision):
    """Weights, gradients and matrix products in float32."""

    parameter_dtype = torch.float32
    compute_dtype = torch.float32

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@configurable
class MixedBFloat16(Precision):
    """Matrix products in bfloat16, weights, gradients and optimizer state in float32 (Micikevicius et al., 2018)."""

    parameter_dtype = torch.float32
    compute_dtype = torch.bfloat16

    @contextlib.contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        # The cache would keep the casts of the gathered weights of FSDP alive, and with them the whole model.
        is_cached = not (dist.is_available() and dist.is_initialized())
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=is_cached):
            yield


@configurable
class PureBFloat16(Precision):
    """Weights, gradients and optimizer state in bfloat16: a third of the memory of mixed precision.

    An update smaller than 2^-9 of its weight is rounded to zero, so expect a higher loss at small learning rates.
    `stochastic_rounding` avoids that: updates are computed in float32, a few weights at a time, and their expectation
    is kept (Gupta et al., 2015).

    Args:
        stochastic_rounding: Whether to round updated weights stochastically instead of to nearest.
    """

    parameter_dtype = torch.bfloat16
    compute_dtype = torch.bfloat16

    def __init__(self, stochastic_rounding: bool = False):
        self.rounds_stochastically = stochastic_rounding

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters in place; buffers, such as rotary frequencies, keep their dtype."""
    for module in all_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
