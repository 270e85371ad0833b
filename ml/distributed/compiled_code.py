"""Functions that `torch.compile` compiles for each kind of block."""

import inspect
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import nn

from ml.distributed.estimate.kinds import kind_of


def forwards_by_kind(blocks: Sequence[nn.Module]) -> list[Callable[..., Any]]:
    """Returns the `forward` of each block, with a separate code object for each kind of block.

    `torch.compile` stores the variants of a function with its code object, tries them in order, and runs the function
    eagerly after `torch._dynamo.config.recompile_limit` of them (8). With a code object per kind, that limit and that
    search are per kind, for any number of kinds; equal blocks share their variants.

    Args:
        blocks: The blocks. One whose `forward` is no method of Python keeps it.
    """
    functions: dict[Hashable, types.FunctionType] = {}
    found = []
    for block in blocks:
        forward = block.forward
        if not (inspect.ismethod(forward) and isinstance(forward.__func__, types.FunctionType)):
            found.append(forward)
            continue
        key = (forward.__func__, kind_of(block))
        if key not in functions:
            functions[key] = _with_own_code(forward.__func__, len(functions))
        found.append(types.MethodType(functions[key], block))
    return found


def _with_own_code(function: types.FunctionType, number: int) -> types.FunctionType:
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_of_kind_{number}")
    copied = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
