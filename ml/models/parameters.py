"""Learning rate scales and weight decay of the parameters of a model."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ml.layers.parameter import adopt_settings, named_settings
from ml.layers.protocol import lr_scale_of


class ScaledParameter(NamedTuple):
    """Parameter with its learning rate multiplier and weight decay (None is that of the optimizer)."""

    name: str
    parameter: nn.Parameter
    lr_scale: float
    weight_decay: float | None


def named_parameters_with_scales(model: nn.Module) -> Iterator[ScaledParameter]:
    """Yields each parameter once, frozen ones included, in the order of `model.named_parameters()`.

    The scale is the product of `lr_scale` over the parameter and every module that holds it. A tied parameter has the
    path of its first name. Raises ValueError for a parameter that was not built by `Parameter`.
    """
    modules = dict(model.named_modules())
    for name, parameter, settings in named_settings(model):
        holders = (lr_scale_of(modules[path]) for path in ancestors(name))
        yield ScaledParameter(name, parameter, math.prod(holders, start=settings.lr_scale), settings.weight_decay)


def ancestors(name: str) -> list[str]:
    """The names of the modules that hold `name`, the model first: "a.b.weight" -> ["", "a", "a.b"]."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def settle_parameters(model: nn.Module) -> None:
    """Gives the settings of all parameters to the modules that own them, and freezes those with a scale of 0."""
    adopt_settings(model)
    for scaled in named_parameters_with_scales(model):
        scaled.parameter.requires_grad_(scaled.lr_scale != 0.0)
