"""Optimizers, and the groups of parameters that share their settings."""

import abc
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from ml.config import configurable, require


class ParameterGroup(NamedTuple):
    """Parameters that one learning rate scale and one weight decay hold for."""

    lr_scale: float
    weight_decay: float | None  # None: what the optimizer says
    names: list[str]
    parameters: list[nn.Parameter]


class Optimizer(abc.ABC):
    """Settings from which a `torch.optim.Optimizer` is made once the parameters exist."""

    learning_rate: float

    @abc.abstractmethod
    def create(self, groups: list[ParameterGroup], device: torch.device) -> torch.optim.Optimizer:
        """The optimizer of `groups`, whose parameters are on `device`; each of its groups has its "lr_scale"."""


@configurable
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in one fused kernel.

    A parameter's learning rate is `learning_rate * schedule(step) * lr_scale`; each step takes that times its weight
    decay off the weight.

    Args:
        learning_rate: The peak, which the schedule scales.
        betas: Decay rates of the running means of the gradient and of its square.
        epsilon: Added to the root of the second mean.
        weight_decay: For parameters that ask for none of their own.
    """

    def __init__(
        self,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        require(learning_rate > 0.0, "learning_rate", f"must be positive, not {learning_rate}")
        require(all(0.0 <= beta < 1.0 for beta in betas), "betas", f"must be in [0, 1), not {betas}")
        require(epsilon > 0.0, "epsilon", f"must be positive, not {epsilon}")
        require(weight_decay >= 0.0, "weight_decay", f"must not be negative: {weight_decay}")
        self.learning_rate = learning_rate
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay

    def create(self, groups: list[ParameterGroup], device: torch.device) -> torch.optim.Optimizer:
        settings = [
            {
                "params": group.parameters,
                "lr_scale": group.lr_scale,
                "weight_decay": self.weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group in groups
        ]
        return torch.optim.AdamW(
            settings, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=device.type in ("cpu", "cuda")
        )


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


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives each group `learning_rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
