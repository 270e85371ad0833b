"""Named tensors on disk, in the format of `torch.distributed.checkpoint` (DCP).

Each process writes one file of tensors, rank 0 the index `.metadata`, and any number of processes read their parts
back. Reading executes nothing that a file contains. DCP is imported lazily because the import takes time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ml.distributed import World
from ml.distributed.shards import sharding_of
from ml.training.checkpoints.index_file import INDEX, Index, read_index
from ml.training.checkpoints.tensor_archive import read_tensor
from ml.training.errors import RunError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
    from torch.distributed.checkpoint.planner import SavePlan
    from torch.distributed.checkpoint.storage import WriteResult


class TensorShape(NamedTuple):
    """Dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorShape:
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class WritePlan(NamedTuple):
    """Division of the work of writing tensors among the processes; a tensor that several hold is written by one.

    Attributes:
        layouts: Shape and placement of each tensor that this process holds, by name.
        part: The tensors that this process writes.
        metadata: The index of the tensors of all processes; None except in rank 0.
    """

    layouts: Mapping[str, tuple[Any, ...]]
    part: SavePlan
    metadata: Metadata | None

    @property
    def names(self) -> Collection[str]:
        """Names of the tensors that this process writes."""
        return {item.index.fqn for item in self.part.items}


def plan_writing(tensors: Mapping[str, Tensor], world: World, known: WritePlan | None = None) -> WritePlan:
    """Plans the writing of tensors; a collective call.

    Args:
        tensors: The tensors that this process holds, by name; each as a whole or as a `DTensor`.
        world: The processes that write.
        known: An earlier plan, which is returned if it fits the tensors of every process.
    """
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

    layouts = {name: _layout(tensor) for name, tensor in tensors.items()}
    is_new = known is None or known.layouts != layouts
    if world.host_sum([int(is_new)]) == [0] and known is not None:
        return known
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(tensors), is_coordinator=world.is_first)
    parts = world.collect(planner.create_local_plan())
    dealt, metadata = world.together(lambda: ([], None) if parts is None else planner.create_global_plan(parts))
    dealt = FileSystemWriter(Path()).prepare_global_plan(dealt)  # names the files by rank
    return WritePlan(layouts, world.deal(dealt), metadata)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], plan: WritePlan) -> list[WriteResult]:
    """Writes the tensors of this process to a file in an existing folder, without flushing it to disk.

    Follows `torch.distributed.checkpoint.save`, which also logs each tensor, warns about a single process, and raises
    errors that `except Exception` does not catch.

    Args:
        folder: The folder, which must exist.
        tensors: The local parts of the tensors that the plan names.
        plan: The division of the work.

    Returns:
        The place of each tensor, for `write_index`.

    Raises:
        OSError: The disk is full or not writable.
        RuntimeError: As OSError, from torch's writer.
    """
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

    if not plan.part.items:
        return []
    planner, writer = DefaultSavePlanner(), FileSystemWriter(folder, sync_files=False)
    vars(planner)["lookup_object"] = lambda index: tensors[index.fqn]
    writer.set_up_storage_writer(is_coordinator=False)
    return writer.write_data(plan.part, planner).wait()


def files_of(written: Collection[WriteResult]) -> list[str]:
    """Returns the names of the files that a process wrote."""
    return sorted({result.storage_data.relative_path for result in written})


def write_index(folder: Path, plan: WritePlan, written: list[list[WriteResult]]) -> str:
    """Writes the index of the tensors, in rank 0.

    Args:
        folder: The folder that holds the files.
        plan: The division of the work.
        written: The places that `write_tensors` returned in each process.

    Returns:
        The name of the file.
    """
    from torch.distributed.checkpoint import FileSystemWriter

    assert plan.metadata is not None
    writer = FileSystemWriter(folder, sync_files=False)
    writer.set_up_storage_writer(is_coordinator=True)
    writer.finish(plan.metadata, written)
    return INDEX


def tensor_shapes(folder: Path) -> dict[str, TensorShape]:
    """Returns dtype and shape of each tensor that `write_tensors` wrote to `folder`.

    Raises:
        RunError: The index is not one of tensors alone, or does not fit the files.
    """
    entries = read_index(folder).tensors
    return {name: TensorShape(entry.properties.dtype, tuple(entry.size)) for name, entry in entries.items()}


@torch.no_grad()
def read_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Reads tensors in place; skips those on the meta device.

    Each process reads what it holds, without the others, however many processes wrote the tensors.

    Args:
        folder: The folder that `write_tensors` wrote to.
        into: The tensors to fill, with the names, dtypes and shapes of the written ones.

    Raises:
        RunError: A file does not contain the tensors that the index names.
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner
    from torch.distributed.checkpoint.metadata import Metadata

    into = {name: tensor for name, tensor in into.items() if not tensor.is_meta}
    planner, index = DefaultLoadPlanner(), read_index(folder)
    planner.set_up_planner(into, Metadata(dict(index.tensors)), is_coordinator=True)
    (plan,) = planner.create_global_plan([planner.create_local_plan()])
    for item in planner.finish_plan(plan).items:
        part = _read_part(folder, index, item.storage_index)
        for dimension, (begin, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            part = part.narrow(dimension, begin, length)
        planner.resolve_tensor(item).copy_(part)


def _read_part(folder: Path, index: Index, which: MetadataIndex) -> Tensor:
    """Reads a part of a tensor as a whole, on the host; it has the dtype and shape in the index."""
    place, tensor = index.places[which], index.tensors[which.fqn]
    assert which.index is not None  # the plan numbers the parts
    expected = TensorShape(tensor.properties.dtype, tuple(tensor.chunks[which.index].sizes))
    part = read_tensor(folder / place.relative_path, place.offset, place.length)
    if TensorShape.of(part) != expected:
        raise RunError(f"{folder / place.relative_path} has {TensorShape.of(part)} for {which.fqn}, not {expected}")
    return part


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Properties of a tensor that its plan depends on."""
    return TensorShape.of(tensor), sharding_of(tensor)
