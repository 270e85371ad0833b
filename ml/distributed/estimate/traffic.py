"""Bytes that a rank communicates, by axis of the mesh and kind of collective."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ml.distributed.estimate.observing import OF_COMMUNICATION, Observer, tensors_in
from ml.distributed.layout import AXES, Layout

WORLD = "world"  # the axis of a group that is no axis of the mesh

# Parts of the names of operators in `c10d` and `_c10d_functional`. What one rank sends, others receive.
_KINDS = {
    "allgather": "all-gather",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "allreduce": "all-reduce",
    "all_reduce": "all-reduce",
    "alltoall": "all-to-all",
    "all_to_all": "all-to-all",
    "broadcast": "broadcast",
    "send": "send",
}


class Collective(NamedTuple):
    """A kind of communication.

    Attributes:
        axis: The axis of the mesh.
        kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "broadcast" or "send".
    """

    axis: str
    kind: str

    def sent(self, payload: float, num_ranks: int) -> float:
        """Bytes that each rank sends, with the algorithms that send least (rings).

        Args:
            payload: Bytes of the whole: of the result of an all-gather, of the operand of the others.
            num_ranks: Number of ranks in the group.
        """
        if self.kind == "send":
            return payload
        share = payload * (num_ranks - 1) / num_ranks
        return 2 * share if self.kind == "all-reduce" else share


class Traffic(Observer):
    """Counts the payload and the calls of the collectives of a rank.

    Args:
        axes: Axis of each process group, by the name of the group.

    Attributes:
        payload: Bytes of the whole tensors, by kind: the result of an all-gather, the operand of the others.
        calls: Number of collectives, by kind.
    """

    def __init__(self, axes: Mapping[str, str]):
        self.axes = axes
        self.payload: Counter[Collective] = Counter()
        self.calls: Counter[Collective] = Counter()

    def see(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if operation.namespace not in OF_COMMUNICATION:
            return
        name = operation.overloadpacket.__name__
        kind = next((kind for part, kind in _KINDS.items() if part in name), None)
        if kind is None:  # a wait, or the receiving side
            return
        collective = Collective(self.axes.get(_group_of(args), WORLD), kind)
        self.payload[collective] += _payload(kind, operation, args, kwargs, result)
        self.calls[collective] += 1


def axes_of(layout: Layout) -> dict[str, str]:
    """Returns the axis of each process group of the mesh, by the name of the group."""
    return {mesh.get_group().group_name: name for name, mesh in _meshes(layout).items()}


def ranks_of(layout: Layout) -> dict[str, list[int]]:
    """Returns the ranks that communicate with this one along each axis, this one among them."""
    ranks = {name: mesh.mesh.flatten().tolist() for name, mesh in _meshes(layout).items()}
    return {**ranks, WORLD: list(range(layout.world.size))}


def _meshes(layout: Layout) -> dict[str, DeviceMesh]:
    """The one-dimensional meshes of this rank with more than one rank, by name."""
    if layout.root is None:
        return {}
    meshes = {**{name: layout.root[name] for name in AXES}, **layout.flattened}
    return {name: mesh for name, mesh in meshes.items() if mesh.size() > 1}


def _group_of(args: Iterable[Any]) -> str:
    """The name of the process group among the arguments of a collective."""
    for one in args:
        if isinstance(one, torch.ScriptObject) and "ProcessGroup" in str(one._type()):
            return dist.ProcessGroup.unbox(one).group_name
        if isinstance(one, dist.ProcessGroup):
            return one.group_name
    return [one for one in args if isinstance(one, str)][-1]


def _payload(kind: str, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Bytes of the larger side of a collective; of an exchange, in which ranks may differ, what this rank gives."""
    if kind == "all-to-all":
        return _num_bytes(args[1 if operation.namespace == "c10d" else 0])
    return max(_num_bytes(one) for one in (*args, *kwargs.values(), result))


def _num_bytes(value: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(value))
