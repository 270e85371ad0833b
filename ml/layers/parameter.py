"""`Parameter`: a weight of a model, with its initialization, its learning rate scale and its weight decay."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ml.config import child, configurable, require
from ml.layers.checks import ADDRESSABLE, checked_lr_scale
from ml.layers.initialization import Fill, Initialization, normal
from ml.layers.walk import all_modules, named_modules


class ParameterSettings(NamedTuple):
    """Settings of one parameter.

    Attributes:
        initialization: Fills the parameter in place.
        lr_scale: Multiplied with those of the modules that hold the parameter; 0 freezes it.
        weight_decay: None is the optimizer's own.
    """

    initialization: Fill
    lr_scale: float
    weight_decay: float | None


@configurable
def Parameter(
    shape: tuple[int, ...],
    *,
    initialization: Initialization = normal,
    lr_scale: float = 1.0,
    weight_decay: float | None = None,
) -> nn.Parameter:
    """Returns an uninitialized `nn.Parameter` on the default device and in the default dtype.

    `ml.models.materialize` fills it. `adopt_settings` moves its settings to the module that owns it.

    Args:
        shape: Shape of the parameter.
        initialization: Constructor of the function that fills it.
        lr_scale: Learning rate multiplier, on top of those of the modules that contain the parameter; 0 freezes it.
        weight_decay: Weight decay; None is that of the optimizer.
    """
    require(
        weight_decay is None or 0.0 <= weight_decay < math.inf,
        "weight_decay",
        f"must be at least 0, not {weight_decay}",
    )
    fits = math.prod(shape) * torch.get_default_dtype().itemsize <= ADDRESSABLE
    require(fits, "shape", f"is {tuple(shape)}, and a tensor of that size takes more than 128 TiB")
    parameter = nn.Parameter(torch.empty(shape if fits else (1,) * len(shape)), requires_grad=lr_scale != 0.0)
    fill = child("initialization", initialization)
    vars(parameter)["settings"] = ParameterSettings(fill, checked_lr_scale(lr_scale), weight_decay)
    return parameter


def settings_of(module: nn.Module, name: str) -> ParameterSettings | None:
    """The settings of the parameter `name` that `module` itself owns; None for one that `Parameter` did not build."""
    fresh = vars(module._parameters[name]).get("settings")
    return vars(module).get("parameter_settings", {}).get(name) if fresh is None else fresh


def adopt_settings(model: nn.Module) -> None:
    """Moves the settings of all parameters of `model` to the modules that own them, as `module.parameter_settings`.

    There they survive a deep copy, and a parameter that torch or a sharding replaces.
    """
    fresh: list[nn.Parameter] = []
    for module in all_modules(model):
        own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
        if added := [parameter for parameter in own.values() if "settings" in vars(parameter)]:
            found = {name: settings_of(module, name) for name in own}
            vars(module)["parameter_settings"] = {name: each for name, each in found.items() if each is not None}
            fresh += added
    for parameter in fresh:
        vars(parameter).pop("settings", None)


def named_settings(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, ParameterSettings]]:
    """Yields each parameter once with its name and settings, in the order of `model.named_parameters()`.

    A tied parameter has the settings of its first name. The model may be changed meanwhile.

    Raises:
        ValueError: A parameter was not built by `Parameter`.
    """
    yield from settings_in(named_modules(model))


def settings_in(
    modules: Iterable[tuple[str, nn.Module]],
) -> Iterator[tuple[str, nn.Parameter, ParameterSettings]]:
    """Yields what `named_settings` does.

    Args:
        modules: All modules of a model with their paths, from `named_modules`.

    Raises:
        ValueError: A parameter was not built by `Parameter`.
    """
    found: dict[int, tuple[str, nn.Parameter, ParameterSettings]] = {}
    for path, module in modules:
        for own_name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in found:
                continue
            name = f"{path}.{own_name}" if path else own_name
            settings = settings_of(module, own_name)
            if settings is None:
                raise ValueError(f"parameter {name} was not built by `Parameter`, so its settings are unknown")
            found[id(parameter)] = (name, parameter, settings)
    yield from found.values()
