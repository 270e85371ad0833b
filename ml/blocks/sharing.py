"""Blocks that share their weights."""

import functools

from torch import nn

from ml.config import require
from ml.layers.parameter import settings_of
from ml.layers.protocol import lr_scale_of


def share_weights(blocks: list[nn.Module], name: str) -> None:
    """Gives every block the parameters of the first; the blocks remain separate modules, each with its own state.

    Requires equal blocks for `shared`: a shared weight has one shape, one initialization and one scale.
    """
    first = dict(blocks[0].named_modules())
    for block in blocks[1:]:
        others = dict(block.named_modules())
        if others.keys() != first.keys():
            different = sorted(others.keys() ^ first.keys())[0]
            require(False, "shared", f"needs blocks that are alike, and {different} is not in all of {name}")
            return
        for path, module in others.items():
            _share(first[path], module, f"{path or 'the block'} of {name}")


def _share(source: nn.Module, target: nn.Module, place: str) -> None:
    same_scale = lr_scale_of(source) == lr_scale_of(target)
    alike = same_scale and _described(source) == _described(target)
    message = f"needs one shape, initialization, lr_scale and weight_decay in all blocks; not so for {place}"
    require(alike, "shared", message)
    for name, parameter in source._parameters.items():
        target._parameters[name] = parameter


def _described(module: nn.Module) -> dict[str, object]:
    """Properties that two modules with shared parameters must have in common."""
    return {
        name: None if parameter is None else (parameter.shape, *map(_comparable, settings_of(module, name) or ()))
        for name, parameter in module._parameters.items()
    }


def _comparable(setting: object) -> object:
    """A setting; of an initialization, which is a partial function, the function and its arguments."""
    if not isinstance(setting, functools.partial):
        return setting
    return setting.func, setting.args, setting.keywords
