"""The plan of a run on a mesh: memory, communication and time of a step of one rank."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

from ml.distributed import Layout, MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.kinds import keep_blocks, kinds_of_blocks
from ml.distributed.estimate.planned_world import planned_world
from ml.distributed.estimate.traffic import Collective, ranks_of
from ml.models.flops import flops_per_token
from ml.training.errors import RunError
from ml.training.estimate.devices import as_on_gpu
from ml.training.estimate.measurements import Memory, Work, combined_memory, combined_work
from ml.training.estimate.tracing import Traced, trace
from ml.training.trainer import Trainer

# Axes whose collectives run while the device computes: weights are gathered ahead, gradients are reduced afterward.
_OVERLAPPED = ("fsdp", "expert_fsdp", "replicate")


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

    @property
    def total_memory(self) -> float:
        """Bytes at the peak of a step.

        With one micro-batch, gradients appear while activations disappear: only the larger of them counts.
        """
        memory = self.memory
        both = memory.gradients + memory.activations
        kept = both if self.num_micro_batches > 1 else max(memory.gradients, memory.activations)
        return memory.weights + memory.optimizer + kept + memory.working

    @property
    def overlapped_seconds(self) -> float:
        """Time of the collectives that run while the device computes."""
        return sum(one.seconds for key, one in self.communication.items() if key.axis in _OVERLAPPED)

    @property
    def exposed_seconds(self) -> float:
        """Time of the collectives that the device waits for."""
        return sum(one.seconds for key, one in self.communication.items() if key.axis not in _OVERLAPPED)

    @property
    def step_seconds(self) -> float:
        """Time of a step: computation and the collectives it waits for, or the others where they take longer."""
        return max(self.work.seconds + self.exposed_seconds, self.overlapped_seconds)

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


def plan(trainer: Trainer, sizes: MeshSizes, cluster: Cluster) -> Plan:
    """Plans a step of rank 0, whose shards are the largest.

    Traces one block of each kind, and a second one where there are more; the others are like the second.

    Args:
        trainer: The settings of the run.
        sizes: A mesh that fits them.
        cluster: The machines.

    Raises:
        RunError: The mesh has a pipeline, whose stages differ and are not traced.
    """
    if sizes.pipeline > 1:
        raise RunError(f"memory and time of a pipeline are not planned: Mesh.pipeline ({sizes.pipeline}) must be 1")
    part = trainer.batch_size // sizes.num_data_ranks
    micro_batch_size = min(trainer.micro_batch_size, part)
    num_micro_batches = part // micro_batch_size
    with planned_world(sizes.world_size) as world:
        layout = Layout.of(world, sizes)
        memory, work = _extrapolated(trainer, layout, num_micro_batches, cluster)
        ranks = ranks_of(layout)
    communication = {
        key: _communication(key, work.calls[key], payload, ranks[key.axis], cluster)
        for key, payload in work.payload.items()
    }
    return Plan(
        sizes=sizes,
        micro_batch_size=micro_batch_size,
        num_micro_batches=num_micro_batches,
        num_tokens=trainer.batch_size * trainer.sequence_length,
        flops_per_token=flops_per_token(trainer.model, trainer.sequence_length),
        peak_flops=cluster.peak(trainer.precision.compute_dtype),
        memory=memory,
        work=work,
        communication=communication,
    )


def _extrapolated(trainer: Trainer, layout: Layout, num_micro_batches: int, cluster: Cluster) -> Traced:
    kinds = kinds_of_blocks(trainer.model)
    one_of_each = [kind[-1] for kind in kinds]
    base = _measured(trainer, layout, one_of_each, num_micro_batches, cluster)
    memory, work = [(1.0, base.memory)], [(1.0, base.work)]
    working = base.memory.working
    for kind in kinds:
        if (others := len(kind) - 1) > 0:
            more = _measured(trainer, layout, [*one_of_each, kind[0]], num_micro_batches, cluster)
            memory += [(others, more.memory), (-others, base.memory)]
            work += [(others, more.work), (-others, base.work)]
            # Two blocks are gathered or computed again at a time, never more.
            working = max(working, more.memory.working)
    return Traced(combined_memory(memory)._replace(working=working), combined_work(work))


def _measured(
    trainer: Trainer, layout: Layout, paths: Collection[str], num_micro_batches: int, cluster: Cluster
) -> Traced:
    """Measures a step of the model with the blocks `paths` alone; later micro-batches are like the second."""
    model = copy.deepcopy(trainer.model)
    keep_blocks(model, paths)
    if cluster.is_gpu:
        as_on_gpu(model, trainer.precision.compute_dtype)
    first = trace(trainer, copy.deepcopy(model), layout, 1, cluster)
    if num_micro_batches == 1:
        return first
    second = trace(trainer, model, layout, 2, cluster)
    later = num_micro_batches - 1
    work = combined_work([(1.0, first.work), (later, second.work), (-later, first.work)])
    return Traced(second.memory, work)


def _communication(key: Collective, calls: float, payload: float, ranks: list[int], cluster: Cluster) -> Communication:
    sent = key.sent(payload, len(ranks))
    return Communication(calls, payload, sent, sent / cluster.bandwidth(ranks))
