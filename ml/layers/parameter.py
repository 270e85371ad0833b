"""`Parameter`: a weight of a model, with its initialization, its learning rate scale and its weight decay."""

import math
from typing import Protocol

import torch
from torch import nn

from ml.config import child, configurable, require
from ml.layers.checks import ADDRESSABLE
from ml.layers.initialization import Fill, Initialization, normal


class Settings(Protocol):
    """What a parameter built by `Parameter` carries beside its values."""

    initialization: Fill
    lr_scale: float
    weight_decay: float | None


SETTINGS = tuple(Settings.__annotations__)


@configurable
def Parameter(
    shape: tuple[int, ...],
    *,
    initialization: Initialization = normal,
    lr_scale: float = 1.0,
    weight_decay: float | None = None,
) -> nn.Parameter:
    """Returns an `nn.Parameter` that is allocated, on the default device and in the default dtype, and not yet filled.

    `ml.models.materialize` fills it. It carries `initialization`, `lr_scale` (multiplied with those of the modules that
    hold it; 0 freezes) and `weight_decay` (None is the optimizer's own).
    """
    require(
        weight_decay is None or 0.0 <= weight_decay < math.inf,
        "weight_decay",
        f"must be at least 0, not {weight_decay}",
    )
    fits = math.prod(shape) * torch.get_default_dtype().itemsize <= ADDRESSABLE
    require(fits, "shape", f"is {tuple(shape)}, and a tensor of that size takes more than 128 TiB")
    parameter = nn.Parameter(torch.empty(shape if fits else (1,) * len(shape)), requires_grad=lr_scale != 0.0)
    parameter.initialization = child("initialization", initialization)
    parameter.lr_scale = checked_lr_scale(lr_scale)
    parameter.weight_decay = weight_decay
    return parameter


def checked_lr_scale(lr_scale: float) -> float:
    """Requires a learning rate scale that is finite and not negative, and returns it."""
    require(0.0 <= lr_scale < math.inf, "lr_scale", f"must be at least 0 (0 freezes) and finite, not {lr_scale}")
    return lr_scale


def has_settings(parameter: nn.Parameter) -> bool:
    """Whether `parameter` was built by `Parameter` and still carries what it was built with."""
    return all(hasattr(parameter, name) for name in SETTINGS)


def copy_settings(source: nn.Parameter, target: nn.Parameter) -> nn.Parameter:
    """Gives `target` what `source` carries (torch drops it when it replaces or deep-copies a parameter)."""
    for name in SETTINGS:
        setattr(target, name, getattr(source, name))
    return target
