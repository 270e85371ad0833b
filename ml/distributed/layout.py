"""The place of a process in the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ml.distributed.mesh import MeshSizes
from ml.distributed.world import World

# Dimensions of the root mesh, outermost first: the ranks of the last ones are neighbors.
AXES = ("pipeline", "replicate", "shard", "context", "expert", "tensor")

_ONE_PROCESS = MeshSizes()

# The mesh over which ordinary parameters are sharded, and the one over which those of an expert are.
FULLY_SHARDED, FULLY_SHARDED_EXPERT = "fsdp", "expert_fsdp"


@dataclass(frozen=True)
class Layout:
    """The mesh of a run and the place of this process in it. The default is a single process.

    Attributes:
        world: All processes.
        sizes: Sizes of the axes of `Mesh`.
        root: The device mesh with the dimensions `AXES`; None for a single process.
        flattened: One-dimensional meshes over several dimensions of it, by name.
    """

    world: World = field(default_factory=World)
    sizes: MeshSizes = _ONE_PROCESS
    root: DeviceMesh | None = None
    flattened: Mapping[str, DeviceMesh] = field(default_factory=dict)

    @staticmethod
    def of(world: World, sizes: MeshSizes) -> Layout:
        """Arranges the processes of `world`; a collective call."""
        if world.size == 1:
            return Layout(world, sizes)
        root = init_device_mesh(world.device.type, tuple(_dimensions(sizes)), mesh_dim_names=AXES)
        flattened = {FULLY_SHARDED: root["shard", "context", "expert"]._flatten(FULLY_SHARDED)}
        if sizes.expert > 1:
            flattened[FULLY_SHARDED_EXPERT] = root["shard", "context"]._flatten(FULLY_SHARDED_EXPERT)
        for mesh in (root, *flattened.values()):
            for group in mesh.get_all_groups():
                world.set_limit(group)
        return Layout(world, sizes, root, flattened)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.world.device

    def axis(self, name: str) -> DeviceMesh | None:
        """Returns the one-dimensional mesh of this process along an axis; None where the axis has size 1."""
        if self.root is None or self._size(name) == 1:
            return None
        return self.root[name]

    def coordinate(self, name: str) -> int:
        """Returns the place of this process along a dimension of `AXES`."""
        if self.root is None:
            return 0
        coordinate = self.root.get_coordinate()
        assert coordinate is not None
        return coordinate[AXES.index(name)]

    @property
    def data_rank(self) -> int:
        """Index of the part of the batch that this process reads."""
        shard = self.coordinate("replicate") * (self.sizes.data_shard // self.sizes.expert) + self.coordinate("shard")
        return shard * self.sizes.expert + self.coordinate("expert")

    @property
    def num_data_ranks(self) -> int:
        """Number of parts of the batch."""
        return self.sizes.num_data_ranks

    @property
    def part(self) -> tuple[int, ...]:
        """The part of the batch, of its sequences and of the blocks that this process computes; () for the first one.

        The ranks of the tensor axis compute the same part.
        """
        part = (self.data_rank, self.coordinate("context"), self.coordinate("pipeline"))
        return part if any(part) else ()

    @property
    def reads_first(self) -> bool:
        """True in one of the processes that read the same sequences."""
        return not (self.coordinate("tensor") or self.coordinate("context") or self.coordinate("pipeline"))

    @property
    def fully_sharded(self) -> DeviceMesh | None:
        """The mesh of FSDP, (replicate, fsdp) or (fsdp); None where no process shares weights with this one."""
        num_shards = self.sizes.data_shard * self.sizes.context
        if self.root is None or num_shards * self.sizes.data_replicate == 1:
            return None
        return self._replicated(self.flattened[FULLY_SHARDED])

    @property
    def fully_sharded_expert(self) -> DeviceMesh | None:
        """The mesh of FSDP for the parameters of an expert; None where the experts are not divided."""
        if self.root is None or self.sizes.expert == 1:
            return None
        return self._replicated(self.flattened[FULLY_SHARDED_EXPERT])

    def _replicated(self, mesh: DeviceMesh) -> DeviceMesh:
        """Returns (replicate, mesh) if there are replicas of the shards, else the mesh."""
        if self.root is None or self.sizes.data_replicate == 1:
            return mesh
        return DeviceMesh._concatenate([self.root["replicate"], mesh])

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of values that each data, context and pipeline rank measured on its own part.

        The ranks of the tensor axis measure the same and count once. Does not synchronize the device.
        """
        return self.world.sum(self.counted_once(values))

    def counted_once(self, values: Tensor) -> Tensor:
        """Returns the values in one rank of the tensor axis, whose ranks measure the same, and zeros in the others."""
        return values if self.coordinate("tensor") == 0 else torch.zeros_like(values)

    def _size(self, name: str) -> int:
        return dict(zip(AXES, _dimensions(self.sizes), strict=True))[name]


def _dimensions(sizes: MeshSizes) -> list[int]:
    shard = sizes.data_shard // sizes.expert
    return [sizes.pipeline, sizes.data_replicate, shard, sizes.context, sizes.expert, sizes.tensor]
