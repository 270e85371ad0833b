"""Blocks that are alike, of which a plan traces one."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ml.blocks.sequence import BlockSequence

_OF_TORCH = frozenset(vars(nn.Module())) | {"parameter_settings"}  # settings of drawing and of the optimizer
_PLAIN = (str, bytes, int, float, complex, frozenset, type(None), torch.dtype, torch.Size, torch.device)
_FUNCTIONS = (type, types.FunctionType, types.BuiltinFunctionType)


def kinds_of_blocks(model: nn.Module) -> list[list[str]]:
    """Returns the paths of the innermost blocks, those in one list alike: equal shapes, settings and operations."""
    kinds: dict[Hashable, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, BlockSequence):
            for name, block in module.named_blocks().items():
                if not isinstance(block, BlockSequence):
                    kinds.setdefault((path, kind_of(block)), []).append(f"{path}.{name}" if path else name)
    return list(kinds.values())


def keep_blocks(model: nn.Module, paths: Collection[str]) -> None:
    """Removes all innermost blocks but some, in place; a token passes those that are left.

    Args:
        model: The model.
        paths: Paths of the blocks to keep.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, BlockSequence):
            blocks = module.named_blocks()
            inner = {name for name, block in blocks.items() if isinstance(block, BlockSequence)}
            kept = {name for name in blocks if (f"{path}.{name}" if path else name) in paths} | inner
            for name in blocks.keys() - kept:
                parent, _, own = name.rpartition(".")
                delattr(module.get_submodule(parent), own)
            left = {name: block for name, block in blocks.items() if name in kept}
            vars(module)["named_blocks"] = functools.partial(dict, left)


def kind_of(block: nn.Module) -> Hashable:
    """Returns a value that is equal for modules that compute the same on tensors of the same shape."""
    paths = {module: path for path, module in block.named_modules()}
    return tuple((path, _kind_of_module(module, paths)) for module, path in paths.items())


def _kind_of_module(module: nn.Module, paths: Mapping[nn.Module, str]) -> Hashable:
    """The kind of a module without its children."""
    tensors = {**module._parameters, **module._buffers}
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return type(module), _kind(tensors, paths), _kind(own, paths)


def _kind(value: Any, paths: Mapping[nn.Module, str]) -> Hashable:
    """A value that is equal for equal settings; an object that cannot be compared is like itself alone."""
    kind = functools.partial(_kind, paths=paths)
    if isinstance(value, (*_PLAIN, *_FUNCTIONS)):
        return type(value), value
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    if isinstance(value, nn.Module):
        return "module", paths.get(value, id(value))
    if isinstance(value, functools.partial):
        return kind(value.func), kind(value.args), kind(value.keywords)
    if isinstance(value, list | tuple):
        return type(value), tuple(map(kind, value))
    if isinstance(value, dict):
        return tuple((kind(key), kind(item)) for key, item in value.items())
    if hasattr(value, "__dict__"):
        return type(value), kind(vars(value))
    return type(value), id(value)


def in_middle_of(model: Any, paths: Sequence[str]) -> None:
    """Lets a model with blocks `paths` alone have as many before and after them, in place, so that it can be cut.

    Args:
        model: A language model on the meta device, whose other blocks are removed.
        paths: Paths of the blocks, in the order in which a token passes them.
    """
    decoder = model.decoder
    blocks = {path.removeprefix("decoder."): model.get_submodule(path) for path in paths}
    for module in decoder.modules():
        if isinstance(module, BlockSequence):
            vars(module)["named_blocks"] = dict
    ends = []
    for end in ("before", "after"):
        ends.append({f"{end}_{index}": copy.deepcopy(block) for index, block in enumerate(blocks.values())})
        for name, block in ends[-1].items():
            decoder.add_module(name, block)
    vars(decoder)["named_blocks"] = functools.partial(dict, {**ends[0], **blocks, **ends[1]})
