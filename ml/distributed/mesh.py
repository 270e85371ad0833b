"""The mesh: the processes of a run, arranged by what each axis divides."""

import math
from collections.abc import Callable
from typing import NamedTuple

from ml.config import child, configurable, require, unused
from ml.distributed.fsdp import FullyShard
from ml.distributed.schedules import OneForwardOneBackward, PipelineSchedule
from ml.layers.checks import positive_float

THE_REST = -1


class MeshSizes(NamedTuple):
    """Sizes of the axes of a mesh, all known.

    `expert` is part of `data_shard`: the experts of a layer are divided over neighboring data ranks.
    """

    data_replicate: int = 1
    data_shard: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1
    pipeline: int = 1

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.data_replicate * self.data_shard * self.context * self.tensor * self.pipeline

    def __str__(self) -> str:
        """The axes that divide something: "data_shard 4 x tensor 2"."""
        return " x ".join(f"{name} {size}" for name, size in self._asdict().items() if size > 1) or "one process"

    @property
    def num_data_ranks(self) -> int:
        """Number of parts into which the sequences of a batch are divided."""
        return self.data_replicate * self.data_shard


class MeshError(ValueError):
    """A mesh does not fit the number of processes."""


@configurable(neutral=["timeout"])
class Mesh:
    """Arrangement of the processes of a run; has no effect on the result beyond rounding, unless a layer draws random
    numbers or its loss depends on which sequences share a micro-batch.

    The sizes of all axes but `expert` multiply to the number of processes. One of them may be -1, for the rest.

    Args:
        data_replicate: Number of replicas of the weights; each works on a part of the batch (HSDP).
        data_shard: Number of processes over which weights, gradients and optimizer state are sharded; each works on a
            part of the batch (FSDP).
        context: Number of processes among which each sequence is divided.
        tensor: Number of processes among which the heads, the width of the MLP and the vocabulary are divided.
        expert: Number of processes of `data_shard` among which the experts of a layer are divided.
        pipeline: Number of processes among which the blocks of the decoder are divided.
        sequence: Whether the residual stream is divided along time over `tensor`, which saves memory; None where the
            model allows it.
        schedule: Constructor of the order in which the stages of the pipeline compute their micro-batches.
        sharding: Constructor of the way in which weights are sharded over the data ranks.
        timeout: Seconds that a collective may take before the run ends with an error.
    """

    def __init__(
        self,
        *,
        data_replicate: int = 1,
        data_shard: int = THE_REST,
        context: int = 1,
        tensor: int = 1,
        expert: int = 1,
        pipeline: int = 1,
        sequence: bool | None = None,
        schedule: Callable[..., PipelineSchedule] = OneForwardOneBackward,
        sharding: Callable[..., FullyShard] = FullyShard,
        timeout: float = 600.0,
    ):
        sizes = {
            "data_replicate": data_replicate,
            "data_shard": data_shard,
            "context": context,
            "tensor": tensor,
            "pipeline": pipeline,
        }
        for name, size in sizes.items():
            require(size == THE_REST or size > 0, name, f"must be positive, or -1 for the rest, not {size}")
        require(expert > 0, "expert", f"must be positive, not {expert}")
        open_axes = [name for name, size in sizes.items() if size == THE_REST]
        if len(open_axes) > 1:
            require(False, open_axes[1], f"is -1, and so is Mesh.{open_axes[0]}: only one axis can be the rest")
        self.stated = MeshSizes(expert=expert, **sizes)
        self.sequence = sequence
        unused(pipeline == 1, "schedule", "pipeline")
        self._schedule = child("schedule", schedule) if pipeline != 1 else None
        self.sharding = child("sharding", sharding)
        self.timeout = positive_float("timeout", timeout)

    @property
    def schedule(self) -> PipelineSchedule:
        """The schedule of the pipeline, if there is one."""
        assert self._schedule is not None
        return self._schedule

    @property
    def smallest_world(self) -> int:
        """Smallest number of processes that the mesh is for."""
        stated = self.stated._replace(expert=1)
        rest = self.stated.expert if self.stated.data_shard == THE_REST else 1
        return rest * math.prod(size for size in stated if size != THE_REST)

    def sizes(self, world_size: int) -> MeshSizes:
        """Returns the size of every axis.

        Args:
            world_size: Number of processes.

        Raises:
            MeshError: The axes do not multiply to the number of processes.
        """
        stated = self.stated._asdict()
        expert = stated.pop("expert")
        known = math.prod(size for size in stated.values() if size != THE_REST)
        text = " x ".join(f"{name} {size}" for name, size in stated.items() if size not in (1, THE_REST)) or "one"
        rest, remainder = divmod(world_size, known)
        if THE_REST in stated.values():
            if remainder:
                raise MeshError(
                    f"Mesh ({text}) does not divide {world_size} processes: their number must be a multiple of {known}"
                )
        elif known != world_size:
            raise MeshError(f"Mesh ({text}) is for {known} processes, and there are {world_size}")
        found = {name: rest if size == THE_REST else size for name, size in stated.items()}
        if found["data_shard"] % expert:
            raise MeshError(f"Mesh.expert ({expert}) does not divide Mesh.data_shard ({found['data_shard']})")
        return MeshSizes(expert=expert, **found)
