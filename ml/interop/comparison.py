"""Comparison of two models by what their layers compute, wherever the values came from."""

import functools
import re
import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from ml.blocks import BlockSequence
from ml.interop.fields import described
from ml.layers.protocol import Adapter
from ml.layers.walk import named_modules

# Attributes of layers that change training and not what the model computes.
TRAINING = frozenset(
    (
        "lr_scale", "dropout", "draws_noise", "couples_sequences", "auxiliary_loss", "z_loss", "bias_update_rate",
        "loss_chunk_size", "fused", "grouped", "obstacle_to_grouping", "is_merged", "training",
    )
)  # fmt: skip
_PLAIN = (bool, int, float, str, type(None))
_FUNCTIONS = (functools.partial, types.FunctionType, types.BuiltinFunctionType)
_KIND = re.compile(r"^decoder\.\w+\.(block_\d+)")
_NOTHING = (None, ())

Description = dict[str, dict[str, Any]]


def describe(model: nn.Module, *, of_training: bool) -> Description:
    """Returns the plain attributes of every layer and the shapes of its parameters, by its path.

    The path of a block is `decoder.block_<i>`, whatever kind it is of.

    Args:
        model: The model, on any device.
        of_training: Whether to include what matters in training alone.
    """
    found: Description = {}
    skipped = {path for path, module in named_modules(model) if isinstance(module, Adapter)}
    for path, module in named_modules(model):
        is_container = isinstance(module, BlockSequence | nn.ModuleDict | nn.ModuleList)
        if is_container or any(path == one or path.startswith(f"{one}.") for one in skipped):
            continue
        place = _KIND.sub(r"decoder.\1", path)
        found[place] = _attributes(module, of_training)
    return found


def _attributes(module: nn.Module, of_training: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"the class": type(module).__name__}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training" or (name in TRAINING and not of_training):
            continue
        if isinstance(value, _PLAIN):
            found[name] = value
        elif isinstance(value, list | tuple) and all(isinstance(one, _PLAIN) for one in value):
            found[name] = list(value)
        elif isinstance(value, _FUNCTIONS):
            found[name] = described(value)
    for name, parameter in module._parameters.items():
        found[name] = None if parameter is None else tuple(parameter.shape)
    return found


def differences(ours: Description, theirs: Description) -> list[str]:
    """Returns the differences of two models, the first ones first, as lines for a message.

    Args:
        ours: The model.
        theirs: What the other one has in its place.
    """
    lines = []
    for path in dict.fromkeys((*ours, *theirs)):
        mine, others = ours.get(path), theirs.get(path)
        if mine is None or others is None:
            held = mine or others
            assert held is not None
            lines.append(f"{path} is a {held['the class']} " + ("here alone" if others is None else "there alone"))
            continue
        for name in dict.fromkeys((*mine, *others)):
            value, other = mine.get(name), others.get(name)
            if value != other and not (value in _NOTHING and other in _NOTHING):
                lines.append(f"{path}: {mine['the class']}.{name} is {value}, and there {other}")
    return lines


def equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Returns whether two models compute the same with equal weights."""
    return not differences(dict(ours), dict(theirs))
