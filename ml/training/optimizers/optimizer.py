"""Base class of optimizers: settings that create a `torch.optim.Optimizer` once the parameters exist."""

import abc
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ml.layers.checks import non_negative, positive_float
from ml.training.optimizers.groups import ParameterGroup


class Optimizer(abc.ABC):
    """Settings of an optimizer."""

    @property
    def can_skip(self) -> bool:
        """True if a step changes nothing where `found_inf` of the created optimizer, a () float32 tensor, is 1.

        `Trainer.skip_step` requires it.
        """
        return False

    def __init__(self, learning_rate: float, weight_decay: float):
        self.learning_rate = positive_float("learning_rate", learning_rate)
        self.weight_decay = non_negative("weight_decay", weight_decay)

    def assign(self, groups: list[ParameterGroup]) -> list["Assignment"]:
        """Assigns groups of parameters to optimizers; override it to leave some to another optimizer."""
        return [Assignment(self, group) for group in groups]

    def misfit(self, groups: list[ParameterGroup]) -> str | None:
        """Returns why a setting does not fit the parameters, or None if all do."""
        return None

    @abc.abstractmethod
    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Creates the state of a parameter before the first step, by key, on the parameter's device (or meta)."""

    @abc.abstractmethod
    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Creates the torch optimizer, without state.

        Args:
            settings: A parameter group of torch for each group, as from `settings`.
        """

    def create(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """Creates the torch optimizer with the initial state of all parameters.

        Args:
            groups: The parameters, allocated on their device.
        """
        optimizer = self.algorithm([self.settings(group) for group in groups])
        for group in groups:
            for parameter in group.parameters:
                optimizer.state[parameter] = self.initial_state(parameter)
        return optimizer

    def settings(self, group: ParameterGroup) -> dict[str, Any]:
        """Returns torch's parameter group; the schedule sets `lr` to `peak` times its factor times `lr_scale`."""
        return {
            "params": group.parameters,
            "lr": self.learning_rate * group.lr_scale,
            "peak": self.learning_rate,
            "lr_scale": group.lr_scale,
            "weight_decay": group.decay(self.weight_decay),
        }


class Assignment(NamedTuple):
    """A parameter group and the settings of the optimizer that trains it."""

    optimizer: Optimizer
    group: ParameterGroup
