"""Parameter groups with common settings."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn


class ParameterGroup(NamedTuple):
    """Parameters with the same learning rate scale and weight decay.

    Attributes:
        lr_scale: Factor of the learning rate.
        weight_decay: Weight decay; None for the default of the optimizer.
        names: The names of the parameters.
        parameters: The parameters.
    """

    lr_scale: float
    weight_decay: float | None
    names: list[str]
    parameters: list[nn.Parameter]

    def decay(self, default: float) -> float:
        """Returns the weight decay of the group, or `default` if it has none."""
        return default if self.weight_decay is None else self.weight_decay


def group_parameters(
    parameters: Iterable[tuple[str, nn.Parameter, float, float | None]],
) -> list[ParameterGroup]:
    """Groups parameters by lr_scale and weight decay; freezes those with lr_scale 0.

    Args:
        parameters: (name, parameter, lr_scale, weight_decay) of each parameter.

    Returns:
        The groups, without the frozen parameters.
    """
    groups: dict[tuple[float, float | None], ParameterGroup] = {}
    for name, parameter, lr_scale, weight_decay in parameters:
        if parameter.requires_grad is (lr_scale == 0.0):
            parameter.requires_grad_(lr_scale != 0.0)
        if lr_scale != 0.0:
            group = groups.setdefault((lr_scale, weight_decay), ParameterGroup(lr_scale, weight_decay, [], []))
            group.names.append(name)
            group.parameters.append(parameter)
    return list(groups.values())


def apply_schedule(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the learning rate of each group to its peak times `factor` times its lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor * group["lr_scale"]
