"""Meshes that a model could be trained on, and why others do not fit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ml.distributed import MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.pipeline.cut import misfit_of_stages
from ml.distributed.schedules import OneForwardOneBackward
from ml.errors import UserError
from ml.layers.experts import Experts
from ml.training.estimate.planning import plan
from ml.training.estimate.plans import Plan
from ml.training.estimate.settings import with_schedule
from ml.training.trainer import Trainer


class Candidate(NamedTuple):
    """A mesh with its plan, or the reason that it cannot be used."""

    sizes: MeshSizes
    plan: Plan | None
    obstacle: str | None


def candidates(trainer: Trainer, world_size: int, cluster: Cluster) -> Iterator[Candidate]:
    """Yields the meshes to choose from, plain FSDP first.

    Args:
        trainer: The settings of the run.
        world_size: Number of processes.
        cluster: The machines.
    """
    if trainer.mesh.stated.pipeline == 1:
        trainer = with_schedule(trainer, OneForwardOneBackward())
    for sizes in meshes(trainer, world_size, cluster):
        try:
            trainer.require_fit(sizes)
            yield Candidate(sizes, plan(trainer, sizes, cluster), None)
        except UserError as error:
            yield Candidate(sizes, None, str(error).splitlines()[0])


def meshes(trainer: Trainer, world_size: int, cluster: Cluster) -> list[MeshSizes]:
    """Returns the meshes: FSDP over all processes, over each node with replicas, and with each other axis.

    Those with a pipeline only where the model can be cut into its stages.
    """
    node = cluster.devices_per_node
    most_experts = max((len(one.in_order) for one in trainer.model.modules() if isinstance(one, Experts)), default=1)
    found = [MeshSizes(data_shard=world_size)]
    if world_size % node == 0 and world_size > node:
        found.append(MeshSizes(data_replicate=world_size // node, data_shard=node))
    for size in _powers_of_two(min(node, world_size)):
        found += [sizes for axis in ("tensor", "context") for sizes in _with_rest(world_size, **{axis: size})]
        if misfit_of_stages(trainer.model, trainer.mesh.schedule, size) is None:
            found += _with_rest(world_size, pipeline=size)
    found += [
        MeshSizes(data_shard=world_size, expert=size)
        for size in _powers_of_two(min(most_experts, world_size))
        if world_size % size == 0
    ]
    return found


def _with_rest(world_size: int, **axes: int) -> list[MeshSizes]:
    """The mesh with the rest of the processes in `data_shard`, if they divide it."""
    sizes = MeshSizes(**axes)
    rest, remainder = divmod(world_size, sizes.world_size)
    return [] if remainder else [sizes._replace(data_shard=rest)]


def _powers_of_two(most: int) -> list[int]:
    return [2**exponent for exponent in range(1, most.bit_length())]
