"""The groups of parameters that share their settings."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn


class ParameterGroup(NamedTuple):
    """Parameters that one learning rate scale and one weight decay hold for."""

    lr_scale: float
    weight_decay: float | None  # None: what the optimizer says
    names: list[str]
    parameters: list[nn.Parameter]

    def decay(self, default: float) -> float:
        """The weight decay, of an optimizer whose own is `default`."""
        return default if self.weight_decay is None else self.weight_decay


def group_parameters(
    parameters: Iterable[tuple[str, nn.Parameter, float, float | None]],
) -> list[ParameterGroup]:
    """Groups (name, parameter, lr_scale, weight_decay); a parameter with lr_scale 0 is frozen and in no group."""
    groups: dict[tuple[float, float | None], ParameterGroup] = {}
    for name, parameter, lr_scale, weight_decay in parameters:
        parameter.requires_grad_(lr_scale != 0.0)
        if lr_scale != 0.0:
            group = groups.setdefault((lr_scale, weight_decay), ParameterGroup(lr_scale, weight_decay, [], []))
            group.names.append(name)
            group.parameters.append(parameter)
    return list(groups.values())


def apply_schedule(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives each group its peak times `factor` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor * group["lr_scale"]
