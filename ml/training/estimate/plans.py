"""Plans of a step, and the time of its communication."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ml.distributed import MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.traffic import Collective
from ml.training.estimate.measurements import Memory, Work

PIPELINE_SEND = Collective("pipeline", "send")

# Axes whose collectives run while the device computes: weights are gathered ahead, gradients are reduced afterward.
OVERLAPPED = ("fsdp", "expert_fsdp", "replicate")


@dataclass(frozen=True)
class Communication:
    """A kind of collective in a step of one rank.

    Attributes:
        calls: Number of collectives.
        payload: Bytes of the whole tensors: of the results of all-gathers, of the operands of the others.
        sent: Bytes that the rank sends.
        seconds: Time of sending them at the bandwidth of the links.
    """

    calls: float
    payload: float
    sent: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A step of one rank.

    Attributes:
        sizes: The mesh.
        micro_batch_size: Sequences of a micro-batch.
        num_micro_batches: Micro-batches of a step on each data rank.
        num_tokens: Tokens of a step on all ranks.
        flops_per_token: Of training, without recomputation; None where a layer does not declare them.
        peak_flops: Of a device.
        memory: Bytes at the peak.
        work: Operations and collectives.
        communication: The collectives, by axis and kind.
        stages: The stages of the rank with this memory, in a pipeline; its work is that of the slowest rank.
        num_stages: Number of stages of the pipeline.
        bubble_seconds: Time that the slowest rank of a pipeline waits for the others.
    """

    sizes: MeshSizes
    micro_batch_size: int
    num_micro_batches: int
    num_tokens: int
    flops_per_token: float | None
    peak_flops: float
    memory: Memory
    work: Work
    communication: dict[Collective, Communication]
    stages: tuple[int, ...] = ()
    num_stages: int = 1
    bubble_seconds: float = 0.0

    @property
    def total_memory(self) -> float:
        """Bytes at the peak of a step."""
        return self.memory.peak(accumulates=self.num_micro_batches > 1 or bool(self.stages))

    @property
    def overlapped_seconds(self) -> float:
        """Time of the collectives that run while the device computes."""
        return sum(one.seconds for key, one in self.communication.items() if key.axis in OVERLAPPED)

    @property
    def exposed_seconds(self) -> float:
        """Time of the collectives that the device waits for."""
        return sum(one.seconds for key, one in self.communication.items() if key.axis not in OVERLAPPED)

    @property
    def step_seconds(self) -> float:
        """Time of a step: computation and what it waits for, or the other collectives where they take longer."""
        return max(self.work.seconds + self.exposed_seconds + self.bubble_seconds, self.overlapped_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all ranks."""
        return self.num_tokens / self.step_seconds

    @property
    def utilization(self) -> float | None:
        """Model FLOPs utilization; None where a layer does not declare its FLOPs."""
        if self.flops_per_token is None:
            return None
        return self.flops_per_token * self.tokens_per_second / (self.sizes.world_size * self.peak_flops)


def communication_of(
    work: Work, ranks: Mapping[str, Sequence[int]], cluster: Cluster
) -> dict[Collective, Communication]:
    """Returns the bytes that a rank sends and their time, by axis and kind of collective.

    Args:
        work: The work of the rank.
        ranks: The ranks that communicate along each axis; see `ranks_of`.
        cluster: The machines.
    """
    found = {}
    for key, payload in work.payload.items():
        sent = key.sent(payload, len(ranks[key.axis]))
        seconds = sent / _bandwidth(key, ranks[key.axis], cluster)
        found[key] = Communication(work.calls[key], payload, sent, seconds)
    return found


def _bandwidth(key: Collective, ranks: Sequence[int], cluster: Cluster) -> float:
    """The bandwidth of the slowest links; between stages, a rank sends to one other alone."""
    if key != PIPELINE_SEND:
        return cluster.bandwidth(ranks)
    return min(cluster.bandwidth(pair) for pair in itertools.pairwise(ranks))
