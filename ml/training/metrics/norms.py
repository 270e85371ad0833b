"""The norms of gradients and weights, place by place."""

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ml.config import configurable
from ml.training.state import TrainState


@configurable
class Norms:
    """Adds norms to each logged step: of the gradients of every place and of every group of the optimizer.

    A place is the embeddings, one block, or the head. Gradients are measured before clipping, weights after the step.

    Args:
        weights: Whether the norms of the trained weights of every place are added too.
    """

    def __init__(self, weights: bool = True):
        self.weights = weights

    def measure(self, state: TrainState, grad_norms: Tensor) -> dict[str, dict[str, float]]:
        """The norms by name; waits for the device.

        Args:
            state: After the step.
            grad_norms: (P) of each gradient, in the order of `state.trained()`.
        """
        trained = state.trained()
        places = [module_of(name) for name in trained]
        numbers = [str(index) for index, group in enumerate(state.groups) for _ in group.names]
        gradients = grad_norms.tolist()
        found = {"grad_norms": _joined(places, gradients), "group_grad_norms": _joined(numbers, gradients)}
        if self.weights:
            found["weight_norms"] = _joined(places, weight_norms(list(trained.values())).tolist())
        return found


@torch.no_grad()
def weight_norms(parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of each parameter: (P), at least in float32."""
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(parameters, 2, dtype=dtype))


def module_of(parameter: str) -> str:
    """The block that holds a parameter, else its part of the model: "decoder.block_3", "embeddings", "head"."""
    block = re.match(r"(?:[^.]+\.)*?block_\d+(?=\.)", parameter)
    return block[0] if block else parameter.partition(".")[0]


def _joined(keys: Iterable[str], norms: Iterable[float]) -> dict[str, float]:
    """The norm of everything with one key, from the norms of its parts."""
    parts: dict[str, list[float]] = {}
    for key, norm in zip(keys, norms, strict=True):
        parts.setdefault(key, []).append(norm)
    return {key: math.hypot(*values) for key, values in parts.items()}
