"""Adafactor."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ml.config import configurable, require
from ml.layers.checks import positive_float
from ml.training.optimizers.optimizer import Optimizer
from ml.training.optimizers.portioned import PortionedOptimizer


@configurable
class Adafactor(Optimizer):
    """Adafactor: factored second moments and no first moment (Shazeer and Stern, 2018, algorithm 4).

    v ≈ row · column / mean(row), each a running mean with β_t = 1 - t^beta2_decay; u = g / √v, scaled down to a root
    mean square of `clipping_threshold`; w -= max(minimum_scale, rms(w)) · min(lr, 1/√t) · u. The weight decay is
    decoupled: w -= lr · weight_decay · w. Equal to `torch.optim.Adafactor`, without synchronizing with the host.

    Args:
        learning_rate: Peak learning rate, scaled by the schedule; relative to the root mean square of the weights.
        beta2_decay: Exponent of the decay rate of the second moments; negative.
        epsilon: Lower bound of the root of a second moment; None is the machine epsilon of the weights' dtype.
        minimum_scale: Lower bound of the root mean square of the weights that scales the update.
        clipping_threshold: Upper bound of the root mean square of u.
        weight_decay: Weight decay of parameters without a separate one.
    """

    can_skip = True

    def __init__(
        self,
        learning_rate: float = 1e-2,
        beta2_decay: float = -0.8,
        epsilon: float | None = None,
        minimum_scale: float = 1e-3,
        clipping_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(learning_rate, weight_decay)
        decays = -math.inf < beta2_decay < 0.0
        require(decays, "beta2_decay", f"must be negative and finite, not {beta2_decay}")
        if epsilon is not None:
            positive_float("epsilon", epsilon)
        positive_float("minimum_scale", minimum_scale)
        in_range = 1.0 <= clipping_threshold < math.inf
        require(in_range, "clipping_threshold", f"must be at least 1 and finite, not {clipping_threshold}")
        self.options = {
            "beta2_decay": beta2_decay,
            "epsilon": epsilon,
            "minimum_scale": minimum_scale,
            "clipping_threshold": clipping_threshold,
        }

    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        if parameter.ndim < 2:
            return {"step": step, "variance": torch.zeros_like(parameter)}
        row, column = parameter.new_zeros((*parameter.shape[:-1], 1)), parameter.new_zeros(_column(parameter.shape))
        return {"step": step, "row": row.detach(), "column": column.detach()}

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return AdafactorAlgorithm(settings, **self.options)


class AdafactorAlgorithm(PortionedOptimizer):
    """`Adafactor` on all weights of a portion at once, stacked."""

    def update(
        self, weights: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], group: dict[str, Any]
    ) -> None:
        torch._foreach_add_(state["step"], 1.0)
        g = _side_by_side(gradients)  # (n, ...)
        steps = torch.stack(state["step"]).to(torch.promote_types(g.dtype, torch.float32))
        steps = steps.view(-1, *(1 for _ in weights[0].shape))  # (n, 1, ...)
        epsilon = torch.finfo(g.dtype).eps if group["epsilon"] is None else group["epsilon"]
        share = steps ** group["beta2_decay"]
        if "variance" in state:
            variance = _moved(state["variance"], g.square(), share)
        else:
            rows = _moved(state["row"], _mean_square(g, -1), share)
            columns = _moved(state["column"], _mean_square(g, -2), share)
            variance = rows @ columns / rows.mean(-2, keepdim=True).clamp(min=epsilon)
        change = variance.clamp_(min=epsilon**2).rsqrt_().mul_(g)
        excess = (_root_mean_square(change) / group["clipping_threshold"]).clamp(min=1.0)
        scale = _root_mean_square(_side_by_side(weights)).clamp(min=group["minimum_scale"])
        size = scale * steps.rsqrt().clamp(max=group["lr"]) / excess  # (n, 1, ...)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, list(change.mul_(size.to(g.dtype)).unbind()))


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """Stacks n tensors of one shape, (n, ...); copies only several."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _moved(means: list[Tensor], values: Tensor, share: Tensor) -> Tensor:
    """Interpolates the running means in place toward `values` (n, ...); returns a copy (n, ...)."""
    moved = torch.lerp(_side_by_side(means), values, share.to(values.dtype))
    torch._foreach_copy_(means, list(moved.unbind()))
    return moved


def _mean_square(x: Tensor, dimension: int) -> Tensor:
    """Computes the mean square along one dimension, kept with size 1, without allocating the square of `x`."""
    return torch.linalg.vector_norm(x, dim=dimension, keepdim=True).square_().div_(x.shape[dimension])


def _root_mean_square(x: Tensor) -> Tensor:
    """Computes the root mean square of each of n tensors, (n, ...) to (n, 1, ...)."""
    entries = tuple(range(1, x.ndim))
    norm = torch.linalg.vector_norm(x, dim=entries, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm / math.sqrt(x[0].numel())


def _column(shape: torch.Size) -> tuple[int, ...]:
    return (*shape[:-2], 1, shape[-1])
