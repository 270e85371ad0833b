"""Norms of gradients and weights per module."""

import math
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ml.config import configurable
from ml.training.state import TrainState


@configurable
class Norms:
    """Logs gradient norms per module and per parameter group of the optimizer.

    A module is the embeddings, a block, or the head. Gradients are measured before clipping, weights after the step.

    Args:
        weights: Whether to log the norm of the trained weights of every module too.
    """

    def __init__(self, weights: bool = True):
        self.weights = weights

    def measure(self, state: TrainState, grad_norms: Tensor) -> dict[str, dict[str, float]]:
        """Computes the norms; synchronizes with the device.

        Args:
            state: The state after the step.
            grad_norms: (P) norm of each gradient, in the order of `state.trained()`.

        Returns:
            The norms by metric, then by module or index of the group.
        """
        trained = state.trained()
        modules = [module_of(name) for name in trained]
        groups = [str(index) for index, group in enumerate(state.groups) for _ in group.names]
        gradients = grad_norms.tolist()
        found = {"grad_norms": _joined(modules, gradients), "group_grad_norms": _joined(groups, gradients)}
        if self.weights:
            found["weight_norms"] = _joined(modules, weight_norms(list(trained.values())).tolist())
        return found


@torch.no_grad()
def weight_norms(parameters: Sequence[Tensor]) -> Tensor:
    """Returns the Euclidean norm of each parameter, (P), at least in float32."""
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(list(parameters), 2, dtype=dtype))


def module_of(parameter: str) -> str:
    """Returns the block of a parameter, else its part of the model: "decoder.block_3", "embeddings", "head"."""
    block = re.match(r"(?:[^.]+\.)*?block_\d+(?=\.)", parameter)
    return block[0] if block else parameter.partition(".")[0]


def _joined(keys: Iterable[str], norms: Iterable[float]) -> dict[str, float]:
    """Combines norms with the same key."""
    parts: dict[str, list[float]] = {}
    for key, norm in zip(keys, norms, strict=True):
        parts.setdefault(key, []).append(norm)
    return {key: math.hypot(*values) for key, values in parts.items()}
