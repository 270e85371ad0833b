"""What every optimizer has: settings, from which a `torch.optim.Optimizer` is made once the parameters exist."""

import abc
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ml.layers.checks import non_negative, positive_float
from ml.training.optimizers.groups import ParameterGroup


class Optimizer(abc.ABC):
    """The settings of an optimizer.

    Attributes:
        can_skip: Whether a step leaves no trace where the `found_inf` of what `create` makes, a () float32 tensor on
            the device, is 1: what `Trainer.skip_step` needs.
    """

    can_skip = False

    def __init__(self, learning_rate: float, weight_decay: float):
        self.learning_rate = positive_float("learning_rate", learning_rate)
        self.weight_decay = non_negative("weight_decay", weight_decay)

    def assign(self, groups: list[ParameterGroup]) -> list["Assignment"]:
        """Who trains which parameters; an optimizer that leaves some to another one says so here."""
        return [Assignment(self, group) for group in groups]

    def misfit(self, groups: list[ParameterGroup]) -> str | None:
        """Which setting does not fit these parameters, and why; None where all do."""
        return None

    @abc.abstractmethod
    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is kept for a parameter, as it is before the first step, where the parameter is (or on meta)."""

    @abc.abstractmethod
    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of parameter groups with these settings, without state."""

    def create(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        """The optimizer of `groups`, with the state of all their parameters, which have their memory by now."""
        optimizer = self.algorithm([self.settings(group) for group in groups])
        for group in groups:
            for parameter in group.parameters:
                optimizer.state[parameter] = self.initial_state(parameter)
        return optimizer

    def settings(self, group: ParameterGroup) -> dict[str, Any]:
        """Those that differ between groups: `lr` is `peak`, times what the schedule says, times `lr_scale`."""
        return {
            "params": group.parameters,
            "lr": self.learning_rate * group.lr_scale,
            "peak": self.learning_rate,
            "lr_scale": group.lr_scale,
            "weight_decay": group.decay(self.weight_decay),
        }


class Assignment(NamedTuple):
    """A group of parameters and the settings of the optimizer that trains it."""

    optimizer: Optimizer
    group: ParameterGroup
