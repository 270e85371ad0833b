"""Lion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ml.config import configurable, require
from ml.training.optimizers.optimizer import Optimizer
from ml.training.optimizers.portion import Portion
from ml.training.optimizers.portioned import PortionedOptimizer
from ml.training.optimizers.state_formats import StateFormat


@configurable
class Lion(Optimizer):
    """Lion: the sign of interpolated momentum (Chen et al., 2023, algorithm 2), with one state value per weight.

    w -= lr · (sign(β₁ m + (1 - β₁) g) + weight_decay · w); m = β₂ m + (1 - β₂) g. Every weight changes by lr, so use a
    learning rate 3 to 10 times lower than for AdamW, and a weight decay higher by the same factor.

    Args:
        learning_rate: Peak learning rate, scaled by the schedule.
        betas: Interpolation factors (β₁, β₂) of the update and of the momentum.
        weight_decay: Weight decay of parameters without a separate one.
        state_format: Storage of the momentum, such as `@Blockwise8BitState`; None is the dtype of the weights.
    """

    can_skip = True
    can_round = True

    def __init__(
        self,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.3,
        state_format: Callable[..., StateFormat] | None = None,
    ):
        super().__init__(learning_rate, weight_decay, state_format)
        require(all(0.0 <= beta < 1.0 for beta in betas), "betas", f"must be in [0, 1), not {betas}")
        self.betas = betas

    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self.zeros("mean", parameter)

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return LionAlgorithm(settings, betas=self.betas)


class LionAlgorithm(PortionedOptimizer):
    """`Lion` on all weights of a portion at once."""

    def update(self, portion: Portion, group: dict[str, Any]) -> None:
        weights, gradients, state, *_ = portion
        in_step, stays = group["betas"]
        changes = torch._foreach_lerp(state["mean"], gradients, 1.0 - in_step)
        torch._foreach_sign_(changes)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, changes, alpha=-group["lr"])
        torch._foreach_lerp_(state["mean"], gradients, 1.0 - stays)
