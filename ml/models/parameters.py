"""What the optimizer needs to know about the parameters of a model."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ml.layers.parameter import has_settings
from ml.layers.protocol import lr_scale_of


class ScaledParameter(NamedTuple):
    """A parameter, what its learning rate is multiplied with, and its weight decay (None: the optimizer's own)."""

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
    for name, parameter in model.named_parameters():
        if not has_settings(parameter):
            raise ValueError(f"parameter {name} was not built by `Parameter`, so its learning rate scale is unknown")
        holders = (lr_scale_of(modules[path]) for path in ancestors(name))
        yield ScaledParameter(name, parameter, math.prod(holders, start=parameter.lr_scale), parameter.weight_decay)


def ancestors(name: str) -> list[str]:
    """The names of the modules that hold `name`, the model first: "a.b.weight" -> ["", "a", "a.b"]."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def freeze_unscaled(model: nn.Module) -> None:
    """Turns off the gradient of every parameter whose learning rate scale is 0."""
    for scaled in named_parameters_with_scales(model):
        scaled.parameter.requires_grad_(scaled.lr_scale != 0.0)
