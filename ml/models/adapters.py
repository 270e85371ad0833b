"""Adapters of a model: merging, unmerging, and saving and loading without the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ml.errors import UserError
from ml.layers.adapted import Adapted


def merge_adapters(model: nn.Module) -> None:
    """Merges every adapter into the weight of its layer, which makes the model as fast as one without adapters.

    The outputs are equal within rounding where dropout is off. The layers keep copies of their weights without the
    adapter for `unmerge_adapters`. A merged model is not trained.
    """
    for layers in _by_weight(model):
        merged = [layer for layer in layers if layer.is_merged]
        first = merged[0] if merged else layers[0]
        first.merge()
        for layer in layers:
            layer.base_weight = first.base_weight


def unmerge_adapters(model: nn.Module) -> None:
    """Undoes `merge_adapters`: the weights are bit for bit as before, also if other adapters were loaded since."""
    for layers in _by_weight(model):
        for layer in layers:
            layer.unmerge()


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Computes without the adapters of a model inside the context."""
    adapters = {layer: layer.adapter for _, layer in adapted_layers(model)}
    try:
        for layer in adapters:
            layer.adapter = None
        yield
    finally:
        for layer, adapter in adapters.items():
            layer.adapter = adapter


def _by_weight(model: nn.Module) -> list[list[Adapted]]:
    """The adapted layers, those that share a weight together."""
    groups: dict[int, list[Adapted]] = {}
    for _, layer in adapted_layers(model):
        groups.setdefault(id(layer.weight), []).append(layer)
    return list(groups.values())


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every layer that has an adapter, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Adapted) and module.adapter is not None:
            yield name, module


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the adapters, by their names in the model; of shared ones, the first name."""
    found = [layer.adapter for _, layer in adapted_layers(model) if layer.adapter is not None]
    adapters = {id(parameter) for adapter in found for parameter in adapter.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in adapters}


def save_adapters(model: nn.Module, file: str | Path) -> None:
    """Writes the parameters of the adapters, and nothing else, as safetensors.

    Raises:
        UserError: The model has none.
    """
    weights = adapter_weights(model)
    if not weights:
        raise UserError("the model has no adapters to save; Linear.apply_peft = @LoRA adds them")
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, file)


@torch.no_grad()
def load_adapters(model: nn.Module, file: str | Path) -> None:
    """Loads a file of `save_adapters` into the adapters of `model`; a merged model is merged with them.

    Raises:
        UserError: They are the adapters of another model.
    """
    weights, saved = adapter_weights(model), load_file(file)
    if weights.keys() != saved.keys():
        missing, unknown = sorted(weights.keys() - saved.keys())[:3], sorted(saved.keys() - weights.keys())[:3]
        raise UserError(f"{file} is of another model: missing {missing}, not expected {unknown}")
    for name, weight in weights.items():
        if saved[name].shape != weight.shape:
            shapes = f"{tuple(saved[name].shape)}, the model's is {tuple(weight.shape)}"
            raise UserError(f"{name} in {file} is {shapes}: another LoRA.rank or another model")
    was_merged = any(layer.is_merged for _, layer in adapted_layers(model))
    unmerge_adapters(model)
    for name, weight in weights.items():
        weight.copy_(saved[name])
    if was_merged:
        merge_adapters(model)
