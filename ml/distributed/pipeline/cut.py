"""Cutting a model into the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ml.blocks.sequence import BlockSequence
from ml.distributed.elsewhere import Elsewhere, TiedEmbeddings
from ml.distributed.pipeline.stage import Stage
from ml.distributed.schedules import PipelineSchedule
from ml.models.language_model import LanguageModel

_PARTS = ("embeddings", "decoder", "head", "multi_token")


def cut(
    model: LanguageModel, schedule: PipelineSchedule, rank: int, num_ranks: int, dtype: torch.dtype | None = None
) -> list[Stage]:
    """Removes from a model, in place, what other ranks of the pipeline hold; returns the stages of this rank.

    The names of the parts that stay do not change, nor do their initial values. A tied weight stays on the ranks of the
    first and of the last stage.

    Args:
        model: The model, on the meta device.
        schedule: The schedule, which places the stages.
        rank: Index of this process on the pipeline axis.
        num_ranks: Number of processes on the pipeline axis.
        dtype: Dtype of the residual stream between stages; None is that of the embeddings.

    Returns:
        The stages of this rank, in order.

    Raises:
        ValueError: The model cannot be cut; see `misfit_of_stages`.
    """
    if problem := misfit_of_stages(model, schedule, num_ranks):
        raise ValueError(problem)
    dtype = dtype or next(model.embeddings.parameters()).dtype
    parts = blocks_of_stages(model, schedule, num_ranks)
    mine = schedule.stages_of(rank, num_ranks)
    blocks = [[model.get_submodule(path) for path in parts[index]] for index in mine]
    for index, paths in enumerate(parts):
        if index not in mine:
            for path in paths:
                model.set_submodule(path, Elsewhere(model.get_submodule(path), path))
    is_first, is_last = 0 in mine, len(parts) - 1 in mine
    if not is_first:
        is_tied = is_last and model.tie_word_embeddings
        model.embeddings = (TiedEmbeddings if is_tied else Elsewhere)(model.embeddings, "embeddings")
    if not is_last:
        model.head = Elsewhere(model.head, "head")
        if model.multi_token is not None:
            model.multi_token = Elsewhere(model.multi_token, "multi_token")
    return [Stage(model, index, len(parts), own, dtype) for index, own in zip(mine, blocks, strict=True)]


def misfit_of_stages(model: LanguageModel, schedule: PipelineSchedule, num_ranks: int) -> str | None:
    """Returns why a model cannot be cut into the stages of a pipeline; None where it can.

    Args:
        model: The model, not yet cut.
        schedule: The schedule.
        num_ranks: `Mesh.pipeline`.
    """
    advice = "Mesh.pipeline must be 1"
    if num_ranks == 1:
        return None
    name = type(model).__name__
    if model.image_token_id is not None:
        return f"{name} reads images, which a pipeline does not pass on: {advice}"
    if type(model).loss is not LanguageModel.loss:
        return f"{name} has its own `loss`, which cannot be divided into stages: {advice}"
    if others := [child for child, _ in model.named_children() if child not in _PARTS]:
        return f"{name} has the part {others[0]}, which belongs to no stage: {advice}"
    if not isinstance(model.decoder, BlockSequence):
        return f"decoder ({type(model.decoder).__name__}) does not declare its blocks: {advice}"
    for path, module in model.decoder.named_modules(prefix="decoder"):
        if isinstance(module, BlockSequence) and type(module).forward is not BlockSequence.forward:
            return f"{path} ({type(module).__name__}) does not only call its blocks one after another: {advice}"
    num_blocks, num_stages = len(list(ordered_blocks(model))), schedule.num_stages(num_ranks)
    if num_blocks < num_stages:
        return (
            f"{num_blocks} blocks cannot be divided into {num_stages} stages (Mesh.pipeline {num_ranks} x "
            f"{schedule.stages_per_rank} of {type(schedule).__name__})"
        )
    return _shared(model, schedule, num_ranks) or _frozen(model, schedule, num_ranks)


def ordered_blocks(model: LanguageModel) -> Iterator[str]:
    """Yields the paths of the innermost blocks of the decoder, in the order in which a token passes them."""
    assert isinstance(model.decoder, BlockSequence)
    yield from _ordered(model.decoder, "decoder")


def sizes_of_stages(num_blocks: int, num_stages: int, schedule: PipelineSchedule) -> list[int]:
    """Returns the number of blocks of each stage, at least 1, as equal as possible.

    Args:
        num_blocks: Number of blocks, at least `num_stages`.
        num_stages: Number of stages.
        schedule: Tells how many blocks embeddings and head count for.
    """
    cost = num_blocks + schedule.embeddings_as_blocks + schedule.head_as_blocks
    share, rest = divmod(cost, num_stages)
    sizes = [share + (index < rest) for index in range(num_stages)]
    sizes[0] -= schedule.embeddings_as_blocks
    sizes[-1] -= schedule.head_as_blocks
    while min(sizes) < 1:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(min(sizes))] += 1
    return sizes


def _ordered(sequence: BlockSequence, path: str) -> Iterator[str]:
    for name, block in sequence.named_blocks().items():
        if isinstance(block, BlockSequence):
            yield from _ordered(block, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def blocks_of_stages(model: LanguageModel, schedule: PipelineSchedule, num_ranks: int) -> list[list[str]]:
    """Returns the paths of the blocks of each stage."""
    paths = list(ordered_blocks(model))
    sizes = sizes_of_stages(len(paths), schedule.num_stages(num_ranks), schedule)
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [paths[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _shared(model: LanguageModel, schedule: PipelineSchedule, num_ranks: int) -> str | None:
    held: dict[nn.Parameter, int] = {}
    for stage, paths in enumerate(blocks_of_stages(model, schedule, num_ranks)):
        for path in paths:
            for name, parameter in model.get_submodule(path).named_parameters(prefix=path):
                other = held.setdefault(parameter, stage)
                if other != stage:
                    return (
                        f"{name} is shared by blocks of the stages {other} and {stage} (Repeat.shared, Pattern.shared):"
                        f" shared blocks must be in one stage, or Mesh.pipeline 1"
                    )
    return None


def _frozen(model: LanguageModel, schedule: PipelineSchedule, num_ranks: int) -> str | None:
    parts = blocks_of_stages(model, schedule, num_ranks)
    for rank in range(num_ranks):
        mine = schedule.stages_of(rank, num_ranks)
        held = [model.get_submodule(path) for index in mine for path in parts[index]]
        held += [model.embeddings] if 0 in mine else []
        held += [model.head] if len(parts) - 1 in mine else []
        if not _trains(held):
            blocks = ", ".join(path for index in mine for path in parts[index])
            return f"rank {rank} of Mesh.pipeline ({num_ranks}) has nothing to train: {blocks} are frozen"
    return None


def _trains(modules: Sequence[nn.Module]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())
