"""Stochastic rounding of weights to bfloat16."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ml.data.randomness import derive_seed

_DROPPED = 1 << 16  # values of the bits that float32 has and bfloat16 has not


class StochasticRounding(NamedTuple):
    """Rounds to one of the two nearest bfloat16 values, in expectation to the value itself.

    The random bits are a function of seed, step, the name of a weight and the position of its shard, so a resumed run
    repeats them and replicas agree on them.

    Attributes:
        seed: Seed of the run.
        step: The step, from 1.
    """

    seed: int
    step: int

    def generator(self, device: torch.device, name: str, offsets: Sequence[int]) -> torch.Generator:
        """Creates the generator of some weights.

        Args:
            device: Device of the weights.
            name: Name of the first weight.
            offsets: Index of the first entry of its shard.
        """
        key = derive_seed(self.seed, "rounding", self.step, name, *offsets)
        return torch.Generator(device).manual_seed(key)


def round_into(weights: Sequence[Tensor], values: Sequence[Tensor], generator: torch.Generator) -> None:
    """Rounds stochastically: up with the probability of the distance to the value below, in units of their gap.

    Args:
        weights: bfloat16 tensors, overwritten.
        values: float32 tensors of the same shapes.
        generator: Source of the random bits, on the same device.
    """
    for weight, value in zip(weights, values, strict=True):
        bits = torch.empty_like(value, dtype=torch.int32).random_(0, _DROPPED, generator=generator)
        bits.add_(value.view(torch.int32)).bitwise_and_(-_DROPPED)
        weight.copy_(bits.view(torch.float32))
