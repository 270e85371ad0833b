"""Measurements of a traced step, and how those of a whole model follow from those of a few blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ml.distributed.estimate.traffic import Collective


class Memory(NamedTuple):
    """Bytes on a rank at the peak of a step, by purpose.

    Attributes:
        weights: Local shards of the weights.
        gradients: Local shards of the gradients.
        optimizer: Optimizer state and the average of the weights.
        activations: Results of the forward pass of a micro-batch that its backward pass needs.
        working: Everything else: gathered weights, intermediate results, logits.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    working: float = 0.0

    def peak(self, accumulates: bool) -> float:
        """Returns the bytes at the peak of a step.

        Args:
            accumulates: Whether gradients are kept while activations are, as with several micro-batches; with one,
                gradients appear while activations disappear, and only the larger of them counts.
        """
        both = self.gradients + self.activations
        kept = both if accumulates else max(self.gradients, self.activations)
        return self.weights + self.optimizer + kept + self.working


@dataclass(frozen=True)
class Work:
    """Operations and collectives of a rank in a step.

    Attributes:
        seconds: Time of the operations at the peak rates of the device.
        flops: Floating-point operations of matrix products and attention.
        payload: Bytes of the collectives; see `Traffic`.
        calls: Numbers of collectives.
    """

    seconds: float = 0.0
    flops: float = 0.0
    payload: Mapping[Collective, float] = field(default_factory=dict)
    calls: Mapping[Collective, float] = field(default_factory=dict)


def combined_memory(terms: Iterable[tuple[float, Memory]]) -> Memory:
    """Returns the sum of factors times memory."""
    terms = list(terms)
    return Memory(*(sum(factor * memory[index] for factor, memory in terms) for index in range(len(Memory._fields))))


def combined_work(terms: Iterable[tuple[float, Work]]) -> Work:
    """Returns the sum of factors times work."""
    seconds = flops = 0.0
    payload: dict[Collective, float] = defaultdict(float)
    calls: dict[Collective, float] = defaultdict(float)
    for factor, work in terms:
        seconds += factor * work.seconds
        flops += factor * work.flops
        for total, part in ((payload, work.payload), (calls, work.calls)):
            for collective, value in part.items():
                total[collective] += factor * value
    return Work(seconds, flops, payload, calls)
