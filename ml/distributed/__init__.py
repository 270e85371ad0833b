"""Distribution: the processes of a run, their mesh, and how a model is put on it."""

from ml.distributed.layout import Layout
from ml.distributed.mesh import Mesh, MeshError, MeshSizes
from ml.distributed.world import World

__all__ = ["Layout", "Mesh", "MeshError", "MeshSizes", "World"]
