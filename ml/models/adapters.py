"""Adapters of a model: merging, unmerging, and saving and loading without the model."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ml.errors import UserError
from ml.layers.linear import Linear


def merge_adapters(model: nn.Module) -> None:
    """Merges every adapter into the weight of its layer, which makes the model as fast as one without adapters.

    The outputs are equal within rounding where dropout is off.
    """
    for linear in _once_for_each_weight(model):
        linear.merge()
    _mark(model, is_merged=True)


def unmerge_adapters(model: nn.Module) -> None:
    """Undoes `merge_adapters`, within rounding."""
    for linear in _once_for_each_weight(model):
        linear.unmerge()
    _mark(model, is_merged=False)


def _once_for_each_weight(model: nn.Module) -> list[Linear]:
    """The adapted layers; of those that share their weights, one."""
    return list({id(linear.weight): linear for _, linear in adapted_linears(model)}.values())


def _mark(model: nn.Module, is_merged: bool) -> None:
    for _, linear in adapted_linears(model):
        linear.is_merged = is_merged


def adapted_linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Every linear layer that has an adapter, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.adapter is not None:
            yield name, module


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the adapters, by their names in the model; of shared ones, the first name."""
    found = [linear.adapter for _, linear in adapted_linears(model) if linear.adapter is not None]
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
    """Loads a file of `save_adapters` into the adapters of `model`.

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
        weight.copy_(saved[name])
