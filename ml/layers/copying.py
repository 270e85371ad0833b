"""Copies of modules, for the equal blocks and experts of a model."""

import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ml.layers.parameter import ParameterSettings

_REPEATABLE = ("ml.layers.", "ml.blocks.")
_SHARED = (ParameterSettings, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)


class ModuleCopier:
    """Copies modules built by the layers and blocks of Juniper, whose constructors depend on their arguments alone.

    A copy has its own modules, parameters, buffers and containers. Functions and `ParameterSettings` are shared. What
    occurs twice in the original occurs twice in the copy.
    """

    def is_repeatable(self, constructor: Callable[..., Any]) -> bool:
        """Returns whether the constructor is one of Juniper's layers and blocks; others may count their calls."""
        return getattr(constructor, "__module__", "").startswith(_REPEATABLE)

    def copies_of(self, component: Any) -> Callable[[], Any] | None:
        """Returns a function that makes a copy of a module as it is now; None if an attribute cannot be copied."""
        stored = io.BytesIO()
        pickler = _Pickler(stored)
        try:
            pickler.dump(component)
        except (pickle.PicklingError, TypeError, AttributeError):  # such as a lock
            return None
        text, leaves = stored.getvalue(), pickler.leaves
        return lambda: _Unpickler(text, leaves).load()


class _Pickler(pickle.Pickler):
    """Pickles modules without their leaves: tensors, and what copies share."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.leaves: list[Any] = []
        self._indices: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        """Returns the index of a leaf; None for anything else."""
        if not isinstance(value, torch.Tensor) and not isinstance(value, _SHARED):
            return None
        if id(value) not in self._indices:
            self._indices[id(value)] = len(self.leaves)
            self.leaves.append(value)
        return self._indices[id(value)]


class _Unpickler(pickle.Unpickler):
    """Makes one copy."""

    def __init__(self, text: bytes, leaves: list[Any]):
        super().__init__(io.BytesIO(text))
        self._leaves = leaves
        self._copied: dict[int, torch.Tensor] = {}

    def persistent_load(self, index: int) -> Any:
        """Returns a shared leaf itself, and a copy of a tensor."""
        leaf = self._leaves[index]
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if index not in self._copied:
            self._copied[index] = _copied(leaf)
        return self._copied[index]


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copy = nn.Parameter(copy, tensor.requires_grad)
    vars(copy).update(vars(tensor))
    return copy
