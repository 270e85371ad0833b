"""Norms of gradients and weights per module."""

import math
import re
from collections.abc import Iterable, Sequence

from torch import Tensor

from ml.config import configurable
from ml.distributed.norms import local_squares
from ml.training.optimizers import ParameterGroup
from ml.training.state import TrainState


@configurable(neutral=True)
class Norms:
    """Logs gradient norms per module and per parameter group of the optimizer.

    A module is the embeddings, a block, or the head. Gradients are measured before clipping, weights after the step.

    Args:
        weights: Whether to log the norm of the trained weights of every module too.
    """

    def __init__(self, weights: bool = True):
        self.weights = weights

    def measure(
        self, state: TrainState, grad_norms: Tensor, groups: Sequence[ParameterGroup]
    ) -> dict[str, dict[str, float]]:
        """Computes the norms; synchronizes with the device. A collective call where weights are measured.

        Args:
            state: The state after the step.
            grad_norms: (P) norm of each gradient, in the order of `state.replicas.names`.
            groups: The trained parameters of all processes, in groups.

        Returns:
            The norms by metric, then by module or index of the group.
        """
        names = state.replicas.names
        modules = [module_of(name) for name in names]
        index = {name: str(number) for number, group in enumerate(groups) for name in group.names}
        gradients = grad_norms.tolist()
        found = {
            "grad_norms": _joined(modules, gradients),
            "group_grad_norms": _joined([index[name] for name in names], gradients),
        }
        if self.weights:
            squares = state.layout.world.sum(local_squares(state.trained(), state.replicas))
            found["weight_norms"] = _joined(modules, squares.sqrt().tolist())
        return found


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
