"""Adafactor."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ml.config import configurable, require
from ml.distributed.shards import zeros_of_means
from ml.layers.checks import positive_float
from ml.training.optimizers.optimizer import Optimizer
from ml.training.optimizers.portion import Portion
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
    can_round = True

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
        with torch.no_grad():
            return {"step": step, "row": zeros_of_means(parameter, -1), "column": zeros_of_means(parameter, -2)}

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return AdafactorAlgorithm(settings, **self.options)


class AdafactorAlgorithm(PortionedOptimizer):
    """`Adafactor` on all weights of a portion at once, stacked.

    The means over sharded dimensions are summed over the processes that share the weights.
    """

    def update(self, portion: Portion, group: dict[str, Any]) -> None:
        weights, gradients, state, shape, _ = portion
        torch._foreach_add_(state["step"], 1.0)
        g = _side_by_side(gradients)  # (n, ...)
        steps = torch.stack(state["step"]).to(torch.promote_types(g.dtype, torch.float32))
        steps = steps.view(-1, *(1 for _ in shape))  # (n, 1, ...)
        epsilon = torch.finfo(g.dtype).eps if group["epsilon"] is None else group["epsilon"]
        share = steps ** group["beta2_decay"]
        means = Means(portion)
        if "variance" in state:
            variance = _moved(state["variance"], g.square(), share)
        else:
            rows = _moved(state["row"], means.of_squares(g, -1), share)
            columns = _moved(state["column"], means.of_squares(g, -2), share)
            variance = rows @ columns / means.of(rows, -2).clamp(min=epsilon)
        change = variance.clamp_(min=epsilon**2).rsqrt_().mul_(g)
        excess = (means.root_of_squares(change) / group["clipping_threshold"]).clamp(min=1.0)
        scale = means.root_of_squares(_side_by_side(weights)).clamp(min=group["minimum_scale"])
        size = scale * steps.rsqrt().clamp(max=group["lr"]) / excess  # (n, 1, ...)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, list(change.mul_(size.to(g.dtype)).unbind()))


class Means:
    """Means over dimensions of n whole weights, computed from the shards of this process, (n, ...)."""

    def __init__(self, portion: Portion):
        self._shape = portion.shape
        self._sharding = portion.sharding

    def of(self, x: Tensor, dim: int) -> Tensor:
        """Computes the mean along one dimension, kept with size 1."""
        return self._summed(x.sum(dim, keepdim=True), [dim]).div_(self._shape[dim])

    def of_squares(self, x: Tensor, dim: int) -> Tensor:
        """Computes the mean square along one dimension, kept with size 1, without allocating the square of `x`."""
        squares = torch.linalg.vector_norm(x, dim=dim, keepdim=True).square_()
        return self._summed(squares, [dim]).div_(self._shape[dim])

    def root_of_squares(self, x: Tensor) -> Tensor:
        """Computes the root mean square of each of n tensors, (n, ...) to (n, 1, ...), at least in float32."""
        dims = list(range(1, x.ndim))
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        if self._groups(dims):
            norm = self._summed(norm.square_(), dims).sqrt_()
        return norm / math.sqrt(self._shape.numel())

    def _summed(self, x: Tensor, dims: list[int]) -> Tensor:
        """Sums `x` over the processes that divide some of its dimensions, in place."""
        for group in self._groups(dims):
            dist.all_reduce(x, group=group)
        return x

    def _groups(self, dims: list[int]) -> list[dist.ProcessGroup]:
        """The groups that divide dimensions of (n, ...)."""
        num_dims = len(self._shape)
        return [] if self._sharding is None else self._sharding.groups(dim % (num_dims + 1) - 1 for dim in dims)


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """Stacks n tensors of one shape, (n, ...); copies only several."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _moved(means: list[Tensor], values: Tensor, share: Tensor) -> Tensor:
    """Interpolates the running means in place toward `values` (n, ...); returns a copy (n, ...)."""
    moved = torch.lerp(_side_by_side(means), values, share.to(values.dtype))
    torch._foreach_copy_(means, list(moved.unbind()))
    return moved
