"""Observation of the operations of a step, whether they compute or run on fake tensors."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OF_COMMUNICATION = ("c10d", "_c10d_functional", "_dtensor")  # namespaces of operators


class Observer(abc.ABC):
    """Receives the operations of a step on the local tensors of a rank."""

    @abc.abstractmethod
    def see(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Takes note of an operation.

        Args:
            operation: The overload of an operator of torch.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            result: What it returned.
        """


class Observed(TorchDispatchMode):
    """Context in which observers see every operation. An operation on DTensors is seen as those on its local tensors.

    Args:
        observers: Receive the operations, in order.
    """

    def __init__(self, *observers: Observer):
        super().__init__()
        self.observers = observers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "prim":
            for observer in self.observers:
                observer.see(func, args, kwargs, result)
        return result


def tensors_in(value: Any) -> list[Tensor]:
    """Returns the tensors in arguments or results, however they are nested."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
