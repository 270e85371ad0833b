"""AdamW."""

from typing import Any

import torch
from torch import Tensor, nn

from ml.config import configurable, require
from ml.layers.checks import positive_float
from ml.training.optimizers.optimizer import Optimizer


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

    can_skip = True

    def __init__(
        self,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, weight_decay)
        require(all(0.0 <= beta < 1.0 for beta in betas), "betas", f"must be in [0, 1), not {betas}")
        self.betas = betas
        self.epsilon = positive_float("epsilon", epsilon)

    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(settings, betas=self.betas, eps=self.epsilon, fused=True)
