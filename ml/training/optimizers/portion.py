"""The weights of one shape that are updated at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from ml.distributed.shards import Sharding


class Portion(NamedTuple):
    """Weights of one shape, dtype and sharding, with what a step needs to update them.

    All tensors are those of this process: shards where the weights are divided over processes.

    Attributes:
        weights: The weights.
        gradients: Their gradients, which may be overwritten.
        state: Their state, by key.
        shape: Shape of a whole weight.
        sharding: Division of each weight; None if it is not distributed.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    state: dict[str, list[Tensor]]
    shape: torch.Size
    sharding: Sharding | None
