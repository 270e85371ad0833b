"""Base class of native optimizers: a step in portions, each of which can be rolled back."""

import abc
from typing import Any

import torch
from torch import Tensor

from ml.training.optimizers.rollback import portions, rolled_back_where


class PortionedOptimizer(torch.optim.Optimizer, abc.ABC):
    """Updates parameters of one shape and dtype at once.

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
            for portion in portions([parameter for parameter in group["params"] if parameter.grad is not None]):
                state = {key: [self.state[parameter][key] for parameter in portion] for key in self.state[portion[0]]}
                changing = [*portion, *(tensor for tensors in state.values() for tensor in tensors)]
                with rolled_back_where(undo, changing):
                    self.update(portion, [parameter.grad for parameter in portion], state, group)

    @abc.abstractmethod
    def update(
        self, weights: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], group: dict[str, Any]
    ) -> None:
        """Updates weights and state in place.

        Args:
            weights: Weights of one shape.
            gradients: Their gradients, which may be overwritten.
            state: Their state, by key.
            group: Torch's parameter group, with the settings.
        """
