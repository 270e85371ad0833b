"""Named tensors on disk, in the format of `torch.distributed.checkpoint` (DCP).

One process writes one file of tensors and the index `.metadata`; many processes write one file each, and any number of
processes read their parts back. DCP is imported lazily because the import takes half a second.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class TensorShape(NamedTuple):
    """Dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorShape":
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to files in an existing folder, without flushing them to disk.

    Follows `torch.distributed.checkpoint.save`, which also logs each tensor, warns about a single process, and raises
    errors that `except Exception` does not catch.

    Args:
        folder: The folder, which must exist.
        tensors: The tensors by name.

    Raises:
        OSError: The disk is full or not writable.
        RuntimeError: As OSError, from torch's writer.
    """
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

    planner, writer = DefaultSavePlanner(), FileSystemWriter(folder, sync_files=False)
    planner.set_up_planner(dict(tensors), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    results = writer.write_data(planner.finish_plan(plan), planner).wait()
    writer.finish(metadata, [results])


def tensor_shapes(folder: Path) -> dict[str, TensorShape]:
    """Returns dtype and shape of each tensor that `write_tensors` wrote to `folder`."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: TensorShape(entry.properties.dtype, tuple(entry.size))
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


@torch.no_grad()
def read_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Reads tensors in place; skips those on the meta device.

    Args:
        folder: The folder that `write_tensors` wrote to.
        into: The tensors to fill, with the names, dtypes and shapes of the written ones.
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

    into = {name: tensor for name, tensor in into.items() if not tensor.is_meta}
    planner, reader = DefaultLoadPlanner(), FileSystemReader(folder)
    metadata = reader.read_metadata()
    planner.set_up_planner(into, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, True)
    plans = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
    (plan,) = reader.prepare_global_plan(plans)
    reader.read_data(planner.finish_plan(plan), planner).wait()
