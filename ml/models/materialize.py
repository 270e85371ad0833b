"""Allocation and initialization of a model from the meta device."""

import functools
import hashlib
from collections.abc import Collection
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ml.layers.initialization import Fill
from ml.layers.parameter import adopt_settings, named_settings, settings_in
from ml.layers.protocol import Buffered, Stack
from ml.layers.walk import all_modules, named_modules
from ml.models.declarations import obstacle_to_allocation
from ml.models.parameters import ancestors

_Model = TypeVar("_Model", bound=nn.Module)


class Draw(NamedTuple):
    """A parameter and how its initial values are drawn.

    Attributes:
        name: Its name in the model.
        parameter: The parameter, on any device.
        initialization: Fills a tensor of the whole parameter in place.
        seed: Of the initial values of the model.
    """

    name: str
    parameter: nn.Parameter
    initialization: Fill
    seed: int

    def values(self) -> Tensor:
        """Returns the values of the whole parameter in its dtype, on the CPU.

        Raises:
            ValueError: The initialization does not fit the shape.
        """
        values = initial_values(self.name, self.parameter.shape, self.initialization, self.seed)
        return values.to(self.parameter.dtype)


def materialize(
    model: _Model, device: torch.device | str = "cpu", seed: int = 0, given: Collection[str] = ()
) -> _Model:
    """Allocates every parameter of `model` on `device` and fills it by its initialization; returns `model`.

    The values depend on the seed and the parameter's name alone: each has its own CPU generator and is drawn in
    float32, so the order, the device, the dtype and the other parameters make no difference. A tied parameter is made
    once, under its first name. Buffers are those of `Buffered` layers, which compute them.

    Args:
        model: Built by `Parameter` throughout, usually on the meta device.
        device: Where the parameters and buffers are allocated.
        seed: Of the initial values.
        given: Names of parameters that are allocated without values, because all of them are read from a file.

    Raises:
        ValueError: A parameter was not built by `Parameter` or cannot be initialized, or a layer has buffers and does
            not declare how they are computed.
    """
    places = ParameterPlaces(model)
    for draw in draws(model, seed):
        if draw.name in given:
            values = torch.empty_like(draw.parameter, device=device, requires_grad=False)
        else:
            values = draw.values().to(device)
        places.replace(draw.parameter, nn.Parameter(values, draw.parameter.requires_grad))
    reset_buffers(model, device)
    return model


def draws(model: nn.Module, seed: int) -> list[Draw]:
    """Returns the draw of each parameter once, in the order of `model.named_parameters()`.

    Raises:
        ValueError: A parameter was not built by `Parameter`, or a layer has buffers and does not declare how they are
            computed.
    """
    if obstacle := obstacle_to_allocation(model):
        raise ValueError(obstacle)
    branches = {path: module.num_branches for path, module in named_modules(model) if isinstance(module, Stack)}
    adopt_settings(model)
    found = []
    for name, parameter, settings in named_settings(model):
        num_branches = next((branches[path] for path in ancestors(name) if path in branches), None)
        found.append(Draw(name, parameter, at_depth(settings.initialization, num_branches), seed))
    return found


def without_depth(model: nn.Module) -> list[str]:
    """The parameters whose initialization scales with the depth and which stand in no sequence that tells it."""
    modules = named_modules(model)
    stacks = {path for path, module in modules if isinstance(module, Stack)}
    return [
        name
        for name, _, settings in settings_in(modules)
        if has_open_depth(settings.initialization) and stacks.isdisjoint(ancestors(name))
    ]


def initial_values(name: str, shape: torch.Size, initialization: Fill, seed: int) -> Tensor:
    """Returns float32 values on the CPU for the parameter `name`. Raises ValueError where the initialization cannot."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little"))
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    try:
        with torch.no_grad():
            initialization(values, generator=generator)
    except ValueError as error:
        raise ValueError(f"parameter {name} cannot be initialized: {error}") from error
    return values


def at_depth(initialization: Fill, num_branches: int | None) -> Fill:
    """Fills in `num_branches` of an initialization that scales with the depth, unless the configuration did."""
    if not has_open_depth(initialization):
        return initialization
    return functools.partial(initialization, num_branches=num_branches)


def has_open_depth(initialization: Fill) -> bool:
    """True where an initialization scales with a depth that it was not given."""
    return getattr(initialization, "keywords", {}).get("num_branches", 0) is None


class ParameterPlaces:
    """The modules of a model that hold each parameter.

    Args:
        model: The model, whose modules stay the same.
    """

    def __init__(self, model: nn.Module):
        self._places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in all_modules(model):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._places.setdefault(parameter, []).append((module, name))

    def replace(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Puts `new` wherever `old` is held, so that tied parameters stay tied."""
        self._places[new] = self._places.pop(old)
        for module, name in self._places[new]:
            setattr(module, name, new)


def reset_buffers(model: nn.Module, device: torch.device | str) -> None:
    """Computes the buffers of all layers on a device."""
    for module in model.modules():
        if isinstance(module, Buffered):
            module.reset_buffers(device)
