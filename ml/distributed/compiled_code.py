"""Functions that `torch.compile` compiles for each kind of block."""

import inspect
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import nn

from ml.distributed.estimate.kinds import kind_of
from ml.layers.tracing import with_own_code


def forwards_by_kind(blocks: Sequence[nn.Module]) -> list[Callable[..., Any]]:
    """Returns the `forward` of each block, with a separate code object for each kind of block.

    With a code object per kind, the limit of `torch.compile` and its search are per kind, for any number of kinds (see
    `with_own_code`); equal blocks share their variants.

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
            functions[key] = with_own_code(forward.__func__, f"of_kind_{len(functions)}")
        found.append(types.MethodType(functions[key], block))
    return found
