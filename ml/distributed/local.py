"""Parameters that are stored as DTensors and shown as local tensors while a layer computes.

A layer divided over the tensor axis computes as a smaller layer of the same kind: for the time of its `forward`, its
parameters are the parts of this rank, and its sizes (heads, groups) those of the parts. Outside of it they are whole:
names, shapes, checkpoints, FLOPs and the printed model do not change.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import GroupName
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from ml.distributed.collectives import Copy, Gather, ReduceScatter, Sum

TIME = 1  # the dimension of time in the residual stream, (B, T, H)


class Gradient(enum.Enum):
    """The gradient of a parameter that every rank has whole.

    WHOLE: each rank computes all of it.
    PARTIAL: each rank computes a term of it, for the parameter is used within a divided layer.
    OF_STREAM: as the residual stream is: partial where that is divided along time, else whole.
    """

    WHOLE = enum.auto()
    PARTIAL = enum.auto()
    OF_STREAM = enum.auto()


@dataclass
class Stream:
    """The residual stream of the running pass.

    Attributes:
        can_divide: Sequence parallel: the stream may be divided along time over the tensor axis.
        is_divided: It is divided in this pass.
    """

    can_divide: bool
    is_divided: bool = False

    def start(self, num_tokens: int, num_ranks: int, *, is_loss: bool) -> None:
        """Decides for a pass over `num_tokens` positions; only a pass for the loss is divided."""
        self.is_divided = self.can_divide and is_loss and num_tokens % num_ranks == 0


@dataclass(frozen=True)
class TensorAxis:
    """The tensor axis of the mesh, seen from this rank.

    Attributes:
        mesh: One-dimensional.
        stream: The residual stream that the layers read and add to.
        is_compiled: The `forward` of each block is compiled.
        paths: Places of the modules in the model, for messages.
        placed: The parameters that replaced others, by those; shared parameters stay shared.
        shown: What the layers show while they compute, by layer.
    """

    mesh: DeviceMesh
    stream: Stream
    is_compiled: bool = False
    paths: dict[nn.Module, str] = field(default_factory=dict)
    placed: dict[nn.Parameter, nn.Parameter] = field(default_factory=dict)
    shown: dict[nn.Module, Local] = field(default_factory=dict)

    @functools.cached_property
    def size(self) -> int:
        """Number of ranks."""
        return self.mesh.size()

    @functools.cached_property
    def rank(self) -> int:
        """Index of this rank on the axis."""
        return self.mesh.get_local_rank()

    @functools.cached_property
    def group(self) -> GroupName:
        """Name of the process group."""
        return self.mesh.get_group().group_name

    def shares(self, size: int) -> tuple[int, ...]:
        """The sizes of the ranks' parts of a dimension, those of `Shard`: the last ones may be smaller."""
        part = -(-size // self.size)
        return tuple(max(min(size - rank * part, part), 0) for rank in range(self.size))

    def share(self, size: int) -> int:
        """The size of this rank's part of a dimension."""
        return self.shares(size)[self.rank]

    def start(self, size: int) -> int:
        """The index at which this rank's part of a dimension starts."""
        return sum(self.shares(size)[: self.rank])

    def enter(self, x: Tensor) -> Tensor:
        """The residual stream as a divided layer reads it: all positions, with a gradient that is summed."""
        if not self.stream.is_divided:
            return Copy.apply(x, self.group)
        assert x.dim() == 3, "a divided residual stream is (B, T, H)"
        return Gather.apply(x, TIME, self.group)

    def leave(self, y: Tensor) -> Tensor:
        """The sum of the terms that a divided layer computed on each rank, in the form of the residual stream."""
        if not self.stream.is_divided:
            return Sum.apply(y, self.group)
        return ReduceScatter.apply(y, TIME, self.group)

    def gather(self, x: Tensor) -> Tensor:
        """The residual stream as a replicated layer reads it that needs all positions; see `own_positions`."""
        return Gather.apply(x, TIME, self.group) if self.stream.is_divided else x

    def own_positions(self, y: Tensor) -> Tensor:
        """The part of y (B, T, H), equal on all ranks, that belongs to this rank's residual stream."""
        if not self.stream.is_divided:
            return y
        return y.chunk(self.size, dim=TIME)[self.rank]


@dataclass(frozen=True)
class _View:
    module: nn.Module
    name: str
    gradient: Gradient
    scale: float
    rows: tuple[slice, ...] | None

    def whole(self) -> Tensor:
        """The local tensor of the parameter."""
        parameter = self.module._parameters[self.name]
        assert isinstance(parameter, DTensor)
        return parameter.to_local()

    def part(self, tensor: Tensor) -> Tensor:
        if self.rows is not None:
            tensor = torch.cat([tensor[rows] for rows in self.rows])
        return tensor if self.scale == 1.0 else tensor * self.scale


@dataclass
class Local:
    """Local view of a layer, in effect while it computes.

    Attributes:
        axis: The axis over which the layer is divided, or replicated.
    """

    axis: TensorAxis
    _views: list[_View] = field(default_factory=list)
    _sizes: list[tuple[nn.Module, str, Any, Any]] = field(default_factory=list)
    _is_shown: bool = False

    @property
    def has_views(self) -> bool:
        """True where a parameter was placed here."""
        return bool(self._views)

    def shard(self, module: nn.Module, name: str, dim: int) -> None:
        """Divides a parameter, if the module has it, along a dimension."""
        self._place(module, name, Shard(dim), Gradient.WHOLE)

    def replicate(
        self,
        module: nn.Module,
        name: str,
        gradient: Gradient,
        *,
        scale: float = 1.0,
        rows: Sequence[slice] | None = None,
    ) -> None:
        """Keeps a parameter, if the module has it, whole on every rank.

        Args:
            module: Owner of the parameter.
            name: Its name in the module.
            gradient: What each rank computes of its gradient.
            scale: Factor of what the layer sees.
            rows: The rows that the layer sees, concatenated; None is all.
        """
        self._place(module, name, Replicate(), gradient, scale, None if rows is None else tuple(rows))

    def resize(self, module: nn.Module, name: str) -> None:
        """Shows an attribute that counts channels, heads or groups as the size of this rank's part."""
        whole = getattr(module, name)
        self.show_as(module, name, self.axis.share(whole))

    def show_as(self, module: nn.Module, name: str, part: Any) -> None:
        """Shows an attribute as `part`."""
        self._sizes.append((module, name, getattr(module, name), part))

    def read_all_positions(self) -> None:
        """Makes gradients whole: the layer reads all positions also where the residual stream is divided."""
        whole = {Gradient.OF_STREAM: Gradient.WHOLE}
        self._views = [replace(view, gradient=whole.get(view.gradient, view.gradient)) for view in self._views]

    def _place(
        self,
        module: nn.Module,
        name: str,
        placement: Placement,
        gradient: Gradient,
        scale: float = 1.0,
        rows: tuple[slice, ...] | None = None,
    ) -> None:
        parameter = module._parameters.get(name)
        if parameter is None:
            return
        if not isinstance(parameter, DTensor):
            placed = self.axis.placed.get(parameter)
            if placed is None:
                values = distribute_tensor(parameter.detach(), self.axis.mesh, [placement], src_data_rank=None)
                placed = self.axis.placed[parameter] = nn.Parameter(values, parameter.requires_grad)
            module._parameters[name] = placed
        self._views.append(_View(module, name, gradient, scale, rows))

    def around(
        self,
        layer: nn.Module,
        method: str = "forward",
        *,
        enter: Callable[[Tensor], Tensor] | None = None,
        leave: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Shows everything placed here while a method of `layer` runs, unless it is shown already.

        The method is replaced on the instance.

        Args:
            layer: The layer.
            method: Name of the method.
            enter: Applied to the first argument.
            leave: Applied to the result.
        """
        inner = getattr(layer, method)
        self.axis.shown[layer] = self

        @functools.wraps(inner)
        def shown(*args: Any, **kwargs: Any) -> Any:
            if enter is not None:
                args = (enter(args[0]), *args[1:])
            if self._is_shown:
                result = inner(*args, **kwargs)
            else:
                self.show()
                try:
                    result = inner(*args, **kwargs)
                finally:
                    self.hide()
            return result if leave is None else leave(result)

        setattr(layer, method, shown)

    def show(self) -> None:
        """Shows local tensors and sizes, until `hide`."""
        tensors = self._with_summed_gradients([view.whole() for view in self._views])
        for view, tensor in zip(self._views, tensors, strict=True):
            view.module.__dict__[view.name] = view.part(tensor)
        for module, name, _, part in self._sizes:
            module.__dict__[name] = part
        self._is_shown = True

    def hide(self) -> None:
        """Shows the parameters and the sizes of the whole layer again."""
        for view in self._views:
            view.module.__dict__.pop(view.name, None)
        for module, name, whole, _ in self._sizes:
            module.__dict__[name] = whole
        self._is_shown = False

    def _with_summed_gradients(self, tensors: list[Tensor]) -> list[Tensor]:
        """Sums the gradients that are partial over the ranks, with one collective for each dtype."""
        groups: dict[torch.dtype, list[int]] = {}
        for index, (view, tensor) in enumerate(zip(self._views, tensors, strict=True)):
            if self._is_partial(view) and tensor.requires_grad and torch.is_grad_enabled():
                groups.setdefault(tensor.dtype, []).append(index)
        for indices in groups.values():
            flat = torch.cat([tensors[index].flatten() for index in indices])
            pieces = Copy.apply(flat, self.axis.group).split([tensors[index].numel() for index in indices])
            for index, piece in zip(indices, pieces, strict=True):
                tensors[index] = piece.view(tensors[index].shape)
        return tensors

    def _is_partial(self, view: _View) -> bool:
        if view.gradient is Gradient.OF_STREAM:
            return self.axis.stream.is_divided
        return view.gradient is Gradient.PARTIAL
