"""The plan of a run on a mesh: memory, communication and time of a step of one rank."""

from __future__ import annotations

import copy
import dataclasses
from typing import NamedTuple

import torch

from ml.distributed import Layout, MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.kinds import kinds_of_blocks
from ml.distributed.estimate.planned_world import planned_world
from ml.distributed.estimate.traffic import ranks_of
from ml.models.flops import flops_per_token
from ml.training.estimate.compiled import as_compiled
from ml.training.estimate.extrapolation import extrapolated, with_blocks
from ml.training.estimate.measurements import Memory, combined_work
from ml.training.estimate.plans import Plan, communication_of
from ml.training.estimate.stages import RankOfPipeline, ranks_of_pipeline
from ml.training.estimate.tracing import Traced, trace
from ml.training.trainer import Trainer


class StepMemory(NamedTuple):
    """Memory of a step.

    Attributes:
        by_purpose: Bytes by purpose.
        peak: Bytes at the peak.
    """

    by_purpose: Memory
    peak: float


def plan(trainer: Trainer, sizes: MeshSizes, cluster: Cluster) -> Plan:
    """Plans a step of rank 0, whose shards are the largest; in a pipeline, of the rank 0 of each of its coordinates.

    Traces one block of each kind, and a second one where there are more; the others are like the second. Of a single
    process, one micro-batch is traced, after others; of several processes, two. The memory of a pipeline is that of the
    rank that needs most, its time that of the slowest.

    Args:
        trainer: The settings of the run.
        sizes: A mesh that fits them.
        cluster: The machines.

    Raises:
        RunError: The mesh has a pipeline that cannot be planned.
    """
    part = trainer.batch_size // sizes.num_data_ranks
    micro_batch_size = min(trainer.micro_batch_size, part)
    num_micro_batches = part // micro_batch_size
    if sizes.pipeline > 1:
        ranks = ranks_of_pipeline(trainer, sizes, num_micro_batches, cluster)
    elif sizes.world_size == 1:
        traced = _alone(trainer, num_micro_batches, cluster)
        ranks = [RankOfPipeline((), traced.memory, traced.work, {}, 0.0)]
    else:
        with planned_world(sizes.world_size) as world:
            layout = Layout.of(world, sizes)
            traced = _extrapolated(trainer, layout, num_micro_batches, cluster)
            communication = communication_of(traced.work, ranks_of(layout), cluster)
        ranks = [RankOfPipeline((), traced.memory, traced.work, communication, 0.0)]
    plans = [
        Plan(
            sizes=sizes,
            micro_batch_size=micro_batch_size,
            num_micro_batches=num_micro_batches,
            num_tokens=trainer.batch_size * trainer.sequence_length,
            flops_per_token=flops_per_token(trainer.model, trainer.sequence_length),
            peak_flops=cluster.peak(trainer.precision.compute_dtype),
            memory=rank.memory,
            work=rank.work,
            communication=rank.communication,
            stages=rank.stages,
            num_stages=max(1, len(rank.stages) * sizes.pipeline),
            bubble_seconds=rank.bubble_seconds,
        )
        for rank in ranks
    ]
    largest = max(plans, key=lambda one: one.total_memory)
    slowest = max(plans, key=lambda one: one.step_seconds)
    return dataclasses.replace(slowest, memory=largest.memory, stages=largest.stages)


def memory_of_step(trainer: Trainer, device: torch.device) -> StepMemory:
    """Estimates the memory of a step of a single process, as `plan` does, without its time.

    Args:
        trainer: The settings of the run.
        device: The device, whose kernels the layers use.
    """
    cluster = copy.copy(trainer.cluster)
    cluster.is_gpu = device.type == "cuda"
    return memory_on(trainer, cluster)


def memory_on(trainer: Trainer, cluster: Cluster) -> StepMemory:
    """Estimates the memory of a step of a single process, from one micro-batch.

    Args:
        trainer: The settings of the run.
        cluster: The machine.
    """
    num_micro_batches = trainer.batch_size // trainer.micro_batch_size
    memory = _alone(trainer, num_micro_batches, cluster).memory
    return StepMemory(memory, memory.peak(accumulates=num_micro_batches > 1))


def _alone(trainer: Trainer, num_micro_batches: int, cluster: Cluster) -> Traced:
    """Measures a step of a single process; all micro-batches are like one after others."""
    later = num_micro_batches - 1

    def measured(paths: list[str]) -> Traced:
        model = with_blocks(trainer, paths, cluster)
        traced = trace(trainer, model, Layout(), 1, cluster, is_later=later > 0)
        return traced._replace(work=combined_work([(1.0 + later, traced.work), (-later, traced.update)]))

    kinds = kinds_of_blocks(trainer.model)
    traced = extrapolated(kinds, measured)
    if not trainer.compile:
        return traced
    return traced._replace(memory=as_compiled(trainer, traced, kinds, cluster))


def _extrapolated(trainer: Trainer, layout: Layout, num_micro_batches: int, cluster: Cluster) -> Traced:
    """Measures a step of one of several processes; later micro-batches are like the second."""

    def measured(paths: list[str]) -> Traced:
        model = with_blocks(trainer, paths, cluster)
        first = trace(trainer, copy.deepcopy(model), layout, 1, cluster)
        if num_micro_batches == 1:
            return first
        second = trace(trainer, model, layout, 2, cluster)
        later = num_micro_batches - 1
        work = combined_work([(1.0, first.work), (later, second.work), (-later, first.work)])
        return Traced(second.memory, work)

    return extrapolated(kinds_of_blocks(trainer.model), measured)
