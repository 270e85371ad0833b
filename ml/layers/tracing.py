"""Passes that propagate shapes without computing, and code that is traced by itself."""

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_values(tensor: Tensor) -> bool:
    """True for a tensor with readable values: neither on the meta device nor in a pass that only propagates shapes."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def with_own_code(function: Callable[..., Any], suffix: str) -> types.FunctionType:
    """Returns a function with a separate code object, for which `torch.compile` keeps separate variants.

    `torch.compile` stores the variants of a function with its code object, tries them in order, and runs the function
    eagerly after `torch._dynamo.config.recompile_limit` of them (8).

    Args:
        function: A function of Python.
        suffix: End of the new name.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{suffix}")
    copied = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
