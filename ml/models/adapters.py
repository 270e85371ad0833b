"""The adapters of a model: merged into its weights, taken out again, saved and loaded alone."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ml.errors import UserError
from ml.layers.linear import Linear


def merge_adapters(model: nn.Module) -> None:
    """Moves what every adapter does into the weight of its layer: as fast as a model without adapters, and equal to it
    within rounding, where dropout is off."""
    for _, linear in adapted_linears(model):
        linear.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """Undoes `merge_adapters`, within rounding."""
    for _, linear in adapted_linears(model):
        linear.unmerge()


def adapted_linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Every linear layer that has an adapter, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module.adapter is not None:
            yield name, module


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the adapters, by their names in the model."""
    return {
        f"{name}.adapter.{key}": parameter
        for name, linear in adapted_linears(model)
        for key, parameter in linear.adapter.named_parameters()
    }


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
    """Puts what `save_adapters` wrote into the adapters of `model`.

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
