"""Muon for matrices, and another optimizer for all other parameters."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ml.config import child, configurable, require
from ml.distributed.whole import divisions, gathered, scattered
from ml.layers.checks import positive_float
from ml.training.optimizers.adamw import AdamW
from ml.training.optimizers.combined import CombinedOptimizer
from ml.training.optimizers.groups import ParameterGroup
from ml.training.optimizers.optimizer import Assignment, Optimizer
from ml.training.optimizers.portion import Portion
from ml.training.optimizers.portioned import PortionedOptimizer
from ml.training.optimizers.state_formats import StateFormat
from ml.training.products import cpu_multiplies_bfloat16

# Quintic polynomial of Jordan et al. (2024): steep at 0, so few iterations bring singular values near 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_LEAST_NORM = 1e-7
_MAX_ITERATIONS = 100

_MATRICES = ("*.weight",)
_EXCLUDED = ("*embeddings.*", "*head.*")


@configurable
class Muon(Optimizer):
    """Muon: orthogonalized momentum (Jordan et al., 2024) for the matrices of the model.

    m += (1 - momentum) · (g - m); w -= lr · scale · orthogonal(m) + lr · weight_decay · w. A weight is a matrix if it
    has two dimensions and its name matches one of `matrices` and none of `exclude`. All other parameters, which include
    embeddings and head by default, are trained by `others`. Weights of one shape are orthogonalized together, in
    bfloat16 (in float32 on a CPU without bfloat16 instructions); the processes that share them orthogonalize different
    ones.

    Args:
        learning_rate: Peak learning rate of the matrices, scaled by the schedule.
        momentum: Decay rate of the running mean of the gradient.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Weight decay of matrices without a separate one.
        num_iterations: Number of Newton-Schulz iterations.
        update_rms: Root mean square of the update per unit of the learning rate. 0.2 matches AdamW, so that its
            learning rate and weight decay can be kept (Liu et al., Moonlight, 2025, equation 4). None scales the update
            by √max(1, rows / columns) and needs a higher learning rate, such as 0.02.
        matrices: Patterns of parameter names that Muon trains; * matches any text.
        exclude: Patterns of parameter names that `others` trains.
        others: Optimizer of all other parameters, with a separate learning rate: `others/AdamW.learning_rate`.
        state_format: Storage of the momentum, such as `@Blockwise8BitState`; None is the dtype of the matrices.
    """

    def __init__(
        self,
        learning_rate: float = 3e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        num_iterations: int = 5,
        update_rms: float | None = 0.2,
        matrices: tuple[str, ...] = _MATRICES,
        exclude: tuple[str, ...] = _EXCLUDED,
        others: Callable[..., Optimizer] = AdamW,
        state_format: Callable[..., StateFormat] | None = None,
    ):
        super().__init__(learning_rate, weight_decay, state_format)
        require(0.0 <= momentum < 1.0, "momentum", f"must be in [0, 1), not {momentum}")
        in_range = 0 < num_iterations <= _MAX_ITERATIONS
        require(in_range, "num_iterations", f"must be from 1 to {_MAX_ITERATIONS}, not {num_iterations}")
        if update_rms is not None:
            positive_float("update_rms", update_rms)
        self.options = {
            "momentum": momentum,
            "nesterov": nesterov,
            "num_iterations": num_iterations,
            "update_rms": update_rms,
        }
        self.matrices = matrices
        self.exclude = exclude
        self.others = child("others", others)

    @property
    def can_skip(self) -> bool:
        return self.others.can_skip

    @property
    def can_round(self) -> bool:
        return self.others.can_round

    def trains(self, name: str, parameter: nn.Parameter) -> bool:
        """Returns True if Muon trains the parameter."""
        return parameter.ndim == 2 and _matches(name, self.matrices) and not _matches(name, self.exclude)

    def assign(self, groups: list[ParameterGroup]) -> list[Assignment]:
        divided = [_divided(group, self.trains) for group in groups]
        ours = [Assignment(self, matrices) for matrices, _ in divided if matrices.names]
        return ours + self.others.assign([rest for _, rest in divided if rest.names])

    def misfit(self, groups: list[ParameterGroup]) -> str | None:
        names = [name for group in groups for name in group.names]
        for pattern in {*self.matrices, *self.exclude} - {*_MATRICES, *_EXCLUDED}:
            if not any(fnmatchcase(name, pattern) for name in names):
                return f"no trained parameter matches {pattern!r} of Muon.matrices and Muon.exclude"
        assigned = self.assign(groups)
        if not any(assignment.optimizer is self for assignment in assigned):
            if all(".adapter." in name for name in names):  # an orthogonal step of each factor is none of their product
                return "Muon trains no adapters, and all other weights are frozen: set Trainer.optimizer = @AdamW"
            return "Muon.matrices and Muon.exclude leave no matrix to train"
        return self.others.misfit([group for other, group in assigned if other is not self])

    def initial_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return self.zeros("momentum_buffer", parameter)

    def algorithm(self, settings: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return MuonAlgorithm(settings, **self.options)

    def create(self, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
        by_optimizer: dict[Optimizer, list[ParameterGroup]] = {}
        for optimizer, group in self.assign(groups):
            by_optimizer.setdefault(optimizer, []).append(group)
        ours = super().create(by_optimizer.pop(self))
        return CombinedOptimizer([ours, *(other.create(part) for other, part in by_optimizer.items())])


class MuonAlgorithm(PortionedOptimizer):
    """`Muon` on all matrices of one shape at once.

    Of sharded matrices each process orthogonalizes some whole ones: for every dimension of the mesh, one collective
    gathers them and one returns the shards of the result.
    """

    def update(self, portion: Portion, group: dict[str, Any]) -> None:
        weights, gradients, state, shape, sharding = portion
        means, momentum = state["momentum_buffer"], group["momentum"]
        torch._foreach_lerp_(means, gradients, 1.0 - momentum)
        directions = torch._foreach_lerp(gradients, means, momentum) if group["nesterov"] else means
        steps = [] if sharding is None else divisions(shape, sharding)
        whole = gathered(torch.stack(directions).bfloat16(), steps)  # (m, rows, columns)
        products = torch.float32 if whole.device.type == "cpu" and not cpu_multiplies_bfloat16() else whole.dtype
        made = orthogonal(whole.to(products), group["num_iterations"]).to(whole.dtype)
        changes = scattered(made, len(weights), steps)
        rows, columns = shape
        if group["update_rms"] is None:
            scale = math.sqrt(max(1.0, rows / columns))
        else:
            scale = group["update_rms"] * math.sqrt(max(rows, columns))
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(changes.to(weights[0].dtype).unbind()), alpha=-group["lr"] * scale)


def orthogonal(x: Tensor, num_iterations: int) -> Tensor:
    """Orthogonalizes matrices approximately by a Newton-Schulz iteration.

    Args:
        x: (n, rows, columns) matrices with singular value decomposition U S Vᵀ.
        num_iterations: Number of iterations.

    Returns:
        (n, rows, columns), about U Vᵀ.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, num_iterations).mT
    a, b, c = _QUINTIC
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_LEAST_NORM)  # singular values at most 1
    ignored = x.new_empty(len(x), x.shape[1], x.shape[1])
    for _ in range(num_iterations):
        # `bmm` in bfloat16 takes 1.7 times as long on a CPU.
        gram = torch.baddbmm(ignored, x, x.mT, beta=0)  # (n, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _divided(
    group: ParameterGroup, belongs: Callable[[str, nn.Parameter], bool]
) -> tuple[ParameterGroup, ParameterGroup]:
    """Returns the parameters of a group for which `belongs` is True, and the rest."""
    ours, rest = group._replace(names=[], parameters=[]), group._replace(names=[], parameters=[])
    for name, parameter in zip(group.names, group.parameters, strict=True):
        part = ours if belongs(name, parameter) else rest
        part.names.append(name)
        part.parameters.append(parameter)
    return ours, rest
