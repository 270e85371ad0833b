"""Putting a model on a mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ml.distributed.compiled_block import CompiledBlock
from ml.distributed.compiled_code import forwards_by_kind
from ml.distributed.fsdp import blocks_of
from ml.distributed.images import encode_always
from ml.distributed.layout import Layout
from ml.distributed.mesh import Mesh, MeshSizes
from ml.models.language_model import LanguageModel
from ml.models.vision_language_model import VisionLanguageModel

if TYPE_CHECKING:
    from ml.distributed.pipeline.pipeline import Pipeline
    from ml.distributed.pipeline.stage import Stage


def parallelize(model: LanguageModel, layout: Layout, mesh: Mesh, *, compile: bool) -> Pipeline | None:
    """Puts a model on the mesh, in place, in the order in which the parts must happen.

    With a single process nothing but compilation is done. The names of the parameters do not change.

    Args:
        model: The model, on the meta device.
        layout: The mesh and the place of this process in it.
        mesh: The settings of the mesh.
        compile: Whether to compile each block, and in a single process the head with the loss.

    Returns:
        The pipeline that computes gradients and losses; None where there is none.
    """
    stages: list[Stage] = []
    time_shards = 1
    if (axis := layout.axis("pipeline")) is not None:
        from ml.distributed.pipeline.cut import cut

        dtype = None if layout.fully_sharded is None else mesh.sharding.gather_dtype
        stages = cut(model, mesh.schedule, axis.get_local_rank(), axis.size(), dtype)
    blocks = list(blocks_of(model))
    if compile:  # when it is first called, with all that is replaced below
        for block, forward in zip(blocks, forwards_by_kind(blocks), strict=True):
            vars(block)["forward"] = CompiledBlock(block, forward)
        if layout.world.size == 1:
            vars(model.head)["loss"] = torch.compile(model.head.loss)
    if (axis := layout.axis("expert")) is not None:
        from ml.distributed.expert_dispatch import expert_parallel

        expert_parallel(model, axis)
    if (axis := layout.axis("tensor")) is not None:
        from ml.distributed.tensor import obstacle_to_sequence, tensor_parallel

        possible = obstacle_to_sequence(model) is None
        is_divided = possible if mesh.sequence is None else mesh.sequence
        tensor_parallel(model, axis, sequence=is_divided, is_compiled=compile)
        time_shards = axis.size() if is_divided else 1
    if (axis := layout.axis("context")) is not None:
        from ml.distributed.stretch import context_parallel

        context_parallel(model, axis)
    if (sharded := layout.fully_sharded) is not None:
        if isinstance(model, VisionLanguageModel):
            encode_always(model)
        roots: Sequence[nn.Module] = stages or [model]
        for root in roots:
            own = set(root.modules())
            mesh.sharding.shard(root, [b for b in blocks if b in own], sharded, layout.fully_sharded_expert)
    if (axis := layout.axis("pipeline")) is None:
        return None
    from ml.distributed.pipeline.pipeline import Pipeline

    return Pipeline(model, stages, mesh.schedule, axis, time_shards)


def misfits(model: LanguageModel, mesh: Mesh, sizes: MeshSizes) -> Iterator[str]:
    """Yields why a model cannot be put on a mesh, before anything is built.

    Args:
        model: The whole model, on the meta device.
        mesh: The settings of the mesh.
        sizes: The sizes of its axes.
    """
    if sizes.pipeline > 1:
        from ml.distributed.pipeline.cut import misfit_of_stages

        if problem := misfit_of_stages(model, mesh.schedule, sizes.pipeline):
            yield problem
        yield from _misfits_of_schedule(model, mesh, sizes)
    if sizes.tensor > 1:
        from ml.distributed.tensor import obstacle_to_sequence, tensor_misfits

        yield from tensor_misfits(model, sizes.tensor)
        if mesh.sequence and (problem := obstacle_to_sequence(model)):
            yield problem
    if sizes.expert > 1:
        from ml.distributed.expert_dispatch import misfit_of_experts

        if problem := misfit_of_experts(model, sizes.expert):
            yield problem
    if sizes.context > 1:
        from ml.distributed.stretch import obstacle_to_stretches

        if problem := obstacle_to_stretches(model):
            yield problem


def _misfits_of_schedule(model: LanguageModel, mesh: Mesh, sizes: MeshSizes) -> Iterator[str]:
    schedule = mesh.schedule
    name, is_sharded = type(schedule).__name__, sizes.num_data_ranks * sizes.context > 1
    if schedule.splits_backward and is_sharded and mesh.sharding.reshard_after_forward:
        yield f"{name} computes gradients of weights by themselves: FullyShard.reshard_after_forward must be False"
    if schedule.splits_backward and sizes.context > 1:
        yield f"{name} computes gradients of weights by themselves: Mesh.context ({sizes.context}) must be 1"
    first, last = schedule.ranks_of_ends(sizes.pipeline)
    if model.tie_word_embeddings and first == last and is_sharded:
        yield (
            f"{name} has the first and the last stage on one rank, where LanguageModel.tie_word_embeddings does not go "
            "with sharded weights: choose another Mesh.schedule"
        )
