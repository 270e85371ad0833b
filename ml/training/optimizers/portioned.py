"""Base class of native optimizers: a step in portions, each of which can be rolled back."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ml.distributed.shards import Sharding, local, sharding_of
from ml.training.optimizers.rollback import portions, rolled_back_where


class Portion(NamedTuple):
    """Weights of one shape, dtype and sharding, with what a step needs to update them.

    All tensors are those of this process: shards where the weights are divided over processes.

    Attributes:
        weights: The weights.
        gradients: Their gradients, which may be overwritten.
        state: Their state, by key.
        shape: Shape of a whole weight.
        sharding: Division of each weight; None if it is not distributed.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    state: dict[str, list[Tensor]]
    shape: torch.Size
    sharding: Sharding | None


class PortionedOptimizer(torch.optim.Optimizer, abc.ABC):
    """Updates parameters of one shape, dtype and sharding at once, on the shards of this process.

    If `found_inf` is 1, a step leaves everything bitwise unchanged, which takes a copy of each portion and its state
    during the update. Without `found_inf` there is no copy.
    """

    found_inf: Tensor | None = None

    def __init__(self, settings: list[dict[str, Any]], **defaults: Any):
        super().__init__(settings, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # gradients are there: none is called
        """Takes a step; skips parameters without a gradient."""
        undo = None if self.found_inf is None else self.found_inf.bool()
        for group in self.param_groups:
            for weights in portions([weight for weight in group["params"] if weight.grad is not None]):
                portion = self._portion(weights)
                changing = [*portion.weights, *(tensor for tensors in portion.state.values() for tensor in tensors)]
                with rolled_back_where(undo, changing):
                    self.update(portion, group)

    def _portion(self, weights: Sequence[Tensor]) -> Portion:
        keys = self.state[weights[0]]
        return Portion(
            [local(weight) for weight in weights],
            [local(weight.grad) for weight in weights if weight.grad is not None],
            {key: [local(self.state[weight][key]) for weight in weights] for key in keys},
            weights[0].shape,
            sharding_of(weights[0]),
        )

    @abc.abstractmethod
    def update(self, portion: Portion, group: dict[str, Any]) -> None:
        """Updates weights and state in place.

        Args:
            portion: The weights.
            group: Torch's parameter group, with the settings.
        """
