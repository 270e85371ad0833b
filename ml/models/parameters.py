"""Learning rate scales and weight decay of the parameters of a model."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ml.layers.parameter import adopt_settings, settings_in
from ml.layers.protocol import lr_scale_of
from ml.layers.walk import named_modules


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
    scales: dict[str, tuple[float, ...]] = {}  # of each module and those that hold it, without those of 1
    modules = named_modules(model)
    for path, module in modules:
        outer = scales[path.rpartition(".")[0]] if path else ()
        own = lr_scale_of(module)
        scales[path] = outer if own == 1.0 else (*outer, own)
    for name, parameter, settings in settings_in(modules):
        lr_scale = math.prod(scales[name.rpartition(".")[0]], start=settings.lr_scale)
        yield ScaledParameter(name, parameter, lr_scale, settings.weight_decay)


def ancestors(name: str) -> list[str]:
    """The names of the modules that hold `name`, the model first: "a.b.weight" -> ["", "a", "a.b"]."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def settle_parameters(model: nn.Module) -> None:
    """Gives the settings of all parameters to the modules that own them, and freezes those with a scale of 0."""
    adopt_settings(model)
    for scaled in named_parameters_with_scales(model):
        if scaled.parameter.requires_grad is (scaled.lr_scale == 0.0):
            scaled.parameter.requires_grad_(scaled.lr_scale != 0.0)
