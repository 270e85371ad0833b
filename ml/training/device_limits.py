"""Limits of the device that the layers of a model declare."""

from collections.abc import Callable

import torch
from torch import nn

from ml.config.scopes import compress
from ml.layers.protocol import Layer
from ml.layers.walk import named_modules
from ml.models.kernels import Pass, kernels_that_synchronize


def obstacles_on(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Returns what `device` cannot run, each with its paths in the model.

    Args:
        model: The model, on any device.
        device: The device to train on.
        dtype: The dtype of matrix products.
    """
    return _declared(model, lambda layer: layer.obstacle_on(device.type, dtype))


def synchronizations_on(model: nn.Module, work: Pass) -> list[str]:
    """Returns a warning for each reason to synchronize in every forward pass, with its paths in the model.

    Args:
        model: The model, on any device.
        work: A pass of training on the device.
    """
    found = _declared(model, lambda layer: layer.reason_to_synchronize(work.device, work.dtype))
    found += [_located(reason, paths) for reason, paths in kernels_that_synchronize(model, work).items()]
    return [f"every step synchronizes with {work.device}, which makes it slower: {reason}" for reason in found]


def _declared(model: nn.Module, ask: Callable[[Layer], str | None]) -> list[str]:
    paths: dict[str, list[str]] = {}
    for path, module in named_modules(model):
        if isinstance(module, Layer) and (answer := ask(module)) is not None:
            paths.setdefault(answer, []).append(path)
    return [_located(answer, places) for answer, places in paths.items()]


def _located(answer: str, paths: list[str]) -> str:
    return f"{', '.join(compress([tuple(path.split('.')) for path in paths]))}: {answer}"
