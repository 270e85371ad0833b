"""Base class of native optimizers: a step in portions, each computed in float32 and possibly rolled back."""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ml.distributed.norms import divide_
from ml.distributed.shards import local, shard_of, sharding_of
from ml.training.optimizers.controls import DividesGradients
from ml.training.optimizers.portion import Portion
from ml.training.optimizers.rollback import portions, rolled_back_where
from ml.training.optimizers.rounding import StochasticRounding
from ml.training.optimizers.widening import Widening


class PortionedOptimizer(DividesGradients, torch.optim.Optimizer, abc.ABC):
    """Updates parameters of one shape, dtype and sharding at once, on the shards of this process.

    If `found_inf` is 1, a step leaves everything bitwise unchanged, which takes a copy of each portion and its state
    during the update. Without `found_inf` there is no copy. Weights and state are widened to float32 during the update
    if their dtypes differ, or if `rounding` rounds the weights.
    """

    found_inf: Tensor | None = None
    rounding: StochasticRounding | None = None

    def __init__(self, settings: list[dict[str, Any]], **defaults: Any):
        super().__init__(settings, defaults)
        self._widening = Widening()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # gradients are there: none is called
        """Takes a step; skips parameters without a gradient."""
        undo = None if self.found_inf is None else self.found_inf.bool()
        for group in self.param_groups:
            names = dict(zip(group["params"], group["names"], strict=True))
            for weights in portions([weight for weight in group["params"] if weight.grad is not None]):
                portion = self._portion(weights)
                changing = [*portion.weights, *(tensor for tensors in portion.state.values() for tensor in tensors)]
                generator = self._generator(weights[0], names[weights[0]])
                with rolled_back_where(undo, changing), self._widening.of(portion, generator) as wide:
                    if self.grad_scale is not None:
                        divide_(wide.gradients, self.grad_scale)
                    self.update(wide, group)

    def _generator(self, weight: Tensor, name: str) -> torch.Generator | None:
        """The generator that rounds the portion of a first weight; None if its dtype is not rounded to."""
        if self.rounding is None or weight.dtype != torch.bfloat16:
            return None
        return self.rounding.generator(local(weight).device, name, shard_of(weight).offsets)

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
