"""Base class of optimizers: settings that create a `torch.optim.Optimizer` once the parameters exist."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ml.config import child
from ml.layers.checks import non_negative, positive_float
from ml.training.errors import RunError
from ml.training.optimizers.groups import ParameterGroup
from ml.training.optimizers.state_formats import StateFormat


class Optimizer(abc.ABC):
    """Settings of an optimizer."""

    @property
    def can_skip(self) -> bool:
        """True if a step changes nothing where `found_inf` of the created optimizer, a () float32 tensor, is 1.

        `Trainer.skip_step` requires it.
        """
        return False

    @property
    def can_round(self) -> bool:
        """True if the created optimizer rounds weights by its `rounding`, a `StochasticRounding`, where that is set.

        `PureBFloat16.stochastic_rounding` requires it.
        """
        return False

    def __init__(
        self, learning_rate: float, weight_decay: float, state_format: Callable[..., StateFormat] | None = None
    ):
        self.learning_rate = positive_float("learning_rate", learning_rate)
        self.weight_decay = non_negative("weight_decay", weight_decay)
        self.state_format = None if state_format is None else child("state_format", state_format)

    def assign(self, groups: list[ParameterGroup]) -> list["Assignment"]:
        """Assigns groups of parameters to optimizers; override it to leave some to another optimizer."""
        return [Assignment(self, group) for group in groups]

    def misfit(self, groups: list[ParameterGroup]) -> str | None:
        """Returns why a setting does not fit the parameters, or None if all do."""
        return None

    @abc.abstractmethod
    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Creates the state of a parameter before the first step, by key, on the parameter's device (or meta)."""

    def zeros(self, key: str, parameter: nn.Parameter, *, is_signed: bool = True) -> dict[str, Tensor]:
        """Creates a running mean before the first step in `state_format`, or else in the dtype of its parameter.

        Args:
            key: Key of the mean in the state.
            parameter: The parameter.
            is_signed: Whether the mean can be negative.
        """
        if self.state_format is None:
            return {key: torch.zeros_like(parameter)}
        return self.state_format.zeros(key, parameter, is_signed=is_signed)

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

        Raises:
            RunError: The state of a parameter cannot be stored in `state_format` on the mesh.
        """
        optimizer = self.algorithm([self.settings(group) for group in groups])
        for group in groups:
            for name, parameter in zip(group.names, group.parameters, strict=True):
                if self.state_format is not None and (problem := self.state_format.misfit(parameter)):
                    raise RunError(f"the optimizer state of {name} cannot be stored: {problem}")
                optimizer.state[parameter] = self.initial_state(parameter)
        return optimizer

    def settings(self, group: ParameterGroup) -> dict[str, Any]:
        """Returns torch's parameter group; the schedule sets `lr` to `peak` times its factor times `lr_scale`."""
        return {
            "params": group.parameters,
            "names": group.names,
            "lr": self.learning_rate * group.lr_scale,
            "peak": self.learning_rate,
            "lr_scale": group.lr_scale,
            "weight_decay": group.decay(self.weight_decay),
        }


class Assignment(NamedTuple):
    """A parameter group and the settings of the optimizer that trains it."""

    optimizer: Optimizer
    group: ParameterGroup
