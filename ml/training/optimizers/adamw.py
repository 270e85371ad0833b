"""AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ml.config import configurable, require
from ml.distributed.shards import local
from ml.layers.checks import positive_float
from ml.training.optimizers.controls import DividesGradients
from ml.training.optimizers.optimizer import Optimizer
from ml.training.optimizers.portion import Portion
from ml.training.optimizers.portioned import PortionedOptimizer
from ml.training.optimizers.state_formats import StateFormat


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
        state_format: Storage of the running means, such as `@Blockwise8BitState`; None is the dtype of the weights.
    """

    can_skip = True
    can_round = True

    def __init__(
        self,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
        state_format: Callable[..., StateFormat] | None = None,
    ):
        super().__init__(learning_rate, weight_decay, state_format)
        require(all(0.0 <= beta < 1.0 for beta in betas), "betas", f"must be in [0, 1), not {betas}")
        self.betas = betas
        self.epsilon = positive_float("epsilon", epsilon)

    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            **self.zeros("exp_avg", parameter),
            **self.zeros("exp_avg_sq", parameter, is_signed=False),
        }

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        weights = [weight for setting in settings for weight in setting["params"]]
        is_plain = self.state_format is None and all(weight.dtype == torch.float32 for weight in weights)
        kind: type[AdamWAlgorithm] | type[PortionedAdamW] = PortionedAdamW
        if is_plain:
            kind = DividingAdamW if all(weight.device.type == "cpu" for weight in weights) else AdamWAlgorithm
        return kind(settings, betas=self.betas, eps=self.epsilon, fused=True)


class AdamWAlgorithm(torch.optim.AdamW):
    """`torch.optim.AdamW` on the shards of this process, without the overhead of distributed tensors."""

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = map(local, tensors)
        return has_complex


class DividingAdamW(DividesGradients, AdamWAlgorithm):
    """`AdamWAlgorithm` on a CPU, whose kernel divides float32 gradients for a seventh of the time of a separate pass.

    The kernel for CUDA divides in float64, which few GPUs do fast.
    """


class PortionedAdamW(PortionedOptimizer):
    """`AdamW` in portions, for weights or state in other dtypes than float32."""

    def update(self, portion: Portion, group: dict[str, Any]) -> None:
        weights, gradients, state, *_ = portion
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            gradients,
            state["exp_avg"],
            state["exp_avg_sq"],
            [],
            state["step"],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
