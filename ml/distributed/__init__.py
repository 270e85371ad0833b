"""Distribution: the processes of a run, their mesh, and how a model is put on it."""

from ml.distributed.fsdp import FullyShard, weights_changed
from ml.distributed.layout import Layout
from ml.distributed.mesh import Mesh, MeshError, MeshSizes
from ml.distributed.parallelize import misfits, parallelize
from ml.distributed.world import ALONE, World

__all__ = [
    "ALONE",
    "FullyShard",
    "Layout",
    "Mesh",
    "MeshError",
    "MeshSizes",
    "World",
    "misfits",
    "parallelize",
    "weights_changed",
]
