"""Limits of the device that the layers of a model declare."""

from collections.abc import Callable

import torch
from torch import nn

from ml.config.scopes import compress
from ml.layers.protocol import Layer
from ml.layers.walk import named_modules


def obstacles_on(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns what `device` cannot run, each with its paths in the model.

    Args:
        model: The model, on any device.
        device: The device to train on.
        dtype: The dtype of matrix products.
    """
    return _declared(model, lambda layer: layer.obstacle_on(device.type, dtype))


def synchronizations_on(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns a warning for each reason to synchronize in every forward pass, with its paths in the model.

    Args:
        model: The model, on any device.
        device: The device to train on.
        dtype: The dtype of matrix products.
    """
    found = _declared(model, lambda layer: layer.reason_to_synchronize(device.type, dtype))
    return [f"every step synchronizes with {device.type}, which makes it slower: {reason}" for reason in found]


def _declared(model: nn.Module, ask: Callable[[Layer], str | None]) -> list[str]:
    paths: dict[str, list[tuple[str, ...]]] = {}
    for path, module in named_modules(model):
        if isinstance(module, Layer) and (answer := ask(module)) is not None:
            paths.setdefault(answer, []).append(tuple(path.split(".")))
    return [f"{', '.join(compress(places))}: {answer}" for answer, places in paths.items()]
