"""Stochastic gradient descent."""

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
class SGD(Optimizer):
    """Stochastic gradient descent with momentum: m = momentum · m + g; w -= lr · m.

    g is the gradient plus weight_decay · w.

    Args:
        learning_rate: Peak learning rate, scaled by the schedule.
        momentum: Decay rate of the momentum; 0 keeps no state.
        nesterov: Whether the update is momentum · m + g (Nesterov momentum; Sutskever et al., 2013).
        weight_decay: Weight decay of parameters without a separate one.
        state_format: Storage of the momentum, such as `@Blockwise8BitState`; None is the dtype of the weights.
    """

    can_skip = True
    can_round = True

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        state_format: Callable[..., StateFormat] | None = None,
    ):
        super().__init__(learning_rate, weight_decay, state_format)
        require(0.0 <= momentum < 1.0, "momentum", f"must be in [0, 1), not {momentum}")
        require(momentum > 0.0 or not nesterov, "nesterov", "needs SGD.momentum above 0")
        self.momentum = momentum
        self.nesterov = nesterov

    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self.zeros("momentum_buffer", parameter) if self.momentum else {}

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return SGDAlgorithm(settings, momentum=self.momentum, nesterov=self.nesterov)


class SGDAlgorithm(PortionedOptimizer):
    """`SGD` on all weights of a portion at once.

    `torch.optim.SGD` can skip a step only in its fused kernel, whose CPU version in torch 2.13 does not update most
    weights in bfloat16.
    """

    def update(self, portion: Portion, group: dict[str, Any]) -> None:
        weights, gradients, state, *_ = portion
        decay = group["weight_decay"]
        changes = torch._foreach_add(gradients, weights, alpha=decay) if decay else gradients
        if momentum := group["momentum"]:
            means = state["momentum_buffer"]
            torch._foreach_mul_(means, momentum)
            torch._foreach_add_(means, changes)
            changes = torch._foreach_add(changes, means, alpha=momentum) if group["nesterov"] else means
        torch._foreach_add_(weights, changes, alpha=-group["lr"])
