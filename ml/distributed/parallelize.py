"""Putting a model on a mesh."""

from torch import nn

from ml.distributed.fsdp import FullyShard, blocks_of
from ml.distributed.layout import Layout


def parallelize(model: nn.Module, layout: Layout, sharding: FullyShard, *, compile: bool) -> None:
    """Puts a model on the mesh, in place, in the order in which the parts must happen.

    With a single process nothing but compilation is done. The names of the parameters do not change.

    Args:
        model: The model, on the meta device.
        layout: The mesh and the place of this process in it.
        sharding: How weights are sharded over the data ranks.
        compile: Whether to compile each block.
    """
    if compile:
        compile_blocks(model)
    if (mesh := layout.fully_sharded) is not None:
        sharding.shard(model, mesh)


def compile_blocks(model: nn.Module) -> None:
    """Compiles each innermost block separately, so that equal blocks share their compiled code."""
    for block in blocks_of(model):
        block.compile()
