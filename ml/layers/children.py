"""Constructors of children that many layers have: weights, biases, and optional parts."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from ml.config import child, unused
from ml.layers.initialization import Initialization
from ml.layers.parameter import Parameter

_Product = TypeVar("_Product")


def weight_child(
    shape: tuple[int, ...], initialization: Initialization, *, name: str = "weight", is_decayed: bool = True
) -> nn.Parameter:
    """Builds a weight whose initialization is a parameter of the layer.

    Args:
        shape: Shape of the weight.
        initialization: Value of the layer's own parameter; not saved for the child.
        name: Name of the attribute, which is the scope.
        is_decayed: Leaves the weight decay to the optimizer; False suggests 0.
    """
    defaults = {} if is_decayed else {"weight_decay": 0.0}
    return child(name, Parameter, shape, defaults=defaults, derived={"initialization": initialization})


def bias_child(exists: bool, size: int, initialization: Initialization) -> nn.Parameter | None:
    """Builds the bias of a layer with the parameters `bias` and `bias_initialization`, without weight decay.

    Args:
        exists: Value of the layer's parameter `bias`; False builds none.
        size: Number of entries.
        initialization: Value of the layer's parameter `bias_initialization`.
    """
    unused(not exists, "bias_initialization", "bias")
    return weight_child((size,), initialization, name="bias", is_decayed=False) if exists else None


def undecayed_child(name: str, shape: tuple[int, ...], initialization: Initialization) -> nn.Parameter:
    """Builds a parameter with an initialization that the layer suggests, without weight decay.

    Args:
        name: Name of the attribute, which is the scope.
        shape: Shape of the parameter.
        initialization: Suggested initialization; `Parameter.initialization` overrides it.
    """
    return child(name, Parameter, shape, defaults={"initialization": initialization, "weight_decay": 0.0})


def optional_child(
    name: str, constructor: Callable[..., _Product] | None, *args: Any, **options: Any
) -> _Product | None:
    """Builds a child with `child`; returns None where the constructor is None.

    Args:
        name: Name of the attribute, which is the scope.
        constructor: Constructor of the child, or None.
        args: Positional arguments that the parent decides.
        options: `defaults`, `derived` and keyword arguments of `child`.
    """
    return None if constructor is None else child(name, constructor, *args, **options)
