"""AdamW."""

from typing import Any

import torch
from torch import Tensor, nn

from ml.config import configurable, require
from ml.distributed.shards import local
from ml.layers.checks import positive_float
from ml.training.optimizers.optimizer import Optimizer


@configurable
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in one fused kernel.

    m = β₁ m + (1 - β₁) g; v = β₂ v + (1 - β₂) g²; w -= lr · (m̂ / (√v̂ + epsilon) + weight_decay · w), where m̂ and v̂
    are corrected for their initialization with 0 and lr = `learning_rate * schedule(step) * lr_scale`.

    Args:
        learning_rate: Peak learning rate, scaled by the schedule.
        betas: Decay rates (β₁, β₂) of the running means of the gradient and of its square.
        epsilon: Added to the denominator for numerical stability.
        weight_decay: Weight decay of parameters without a separate one.
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
        return AdamWAlgorithm(settings, betas=self.betas, eps=self.epsilon, fused=True)


class AdamWAlgorithm(torch.optim.AdamW):
    """`torch.optim.AdamW` on the shards of this process, without the overhead of distributed tensors."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = map(local, tensors)
        return has_complex
