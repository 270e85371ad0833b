"""Point-to-point exchange between the ranks of an axis, with gradients.

The ranks of the axis work on consecutive stretches of the same sequences and run the same program. A rank waits only
for a neighbor at the same place of the program, in the forward pass for the one before it and in the backward pass, in
the reverse order, for the one after it. Neither can deadlock, however many layers and micro-batches there are.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh


class _Form(NamedTuple):
    """Form of a tensor, which its receiver has to know before."""

    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool


class Neighbors:
    """The neighbors of this rank on an axis.

    Args:
        axis: One-dimensional mesh, in the order of the stretches.

    Attributes:
        rank: Index of this rank.
        size: Number of ranks.
        group: The process group.
        device: The device that tensors are received on.
    """

    def __init__(self, axis: DeviceMesh):
        self.group = axis.get_group()
        self.rank: int = axis.get_local_rank()
        self.size: int = axis.size()
        self.device = torch.device(axis.device_type)
        self._received_forms: dict[Hashable, _Form] = {}
        self._sent_forms: dict[Hashable, _Form] = {}
        self._in_flight: list[tuple[dist.Work | None, Tensor]] = []

    @property
    def is_first(self) -> bool:
        """True for the rank that has the start of the sequences."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """True for the rank that has the end of the sequences."""
        return self.rank == self.size - 1

    def send(self, key: Hashable, tensor: Tensor) -> Tensor:
        """Sends a tensor to the next rank without waiting for it.

        Args:
            key: What the tensor is. The form of tensors with equal keys is sent along once, and must not change.
            tensor: The tensor.

        Returns:
            A scalar 0. The gradient comes back where the scalar is part of the loss.
        """
        form = _Form(tensor.shape, tensor.dtype, tensor.requires_grad and torch.is_grad_enabled())
        if key not in self._sent_forms:
            self._sent_forms[key] = form
            dist.send_object_list([form], group=self.group, group_dst=self.rank + 1, device=tensor.device)
        assert self._sent_forms[key] == form, f"{self._sent_forms[key]} was announced for {key}, not {form}"
        return _Send.apply(tensor, self)

    def receive(self, key: Hashable) -> Tensor:
        """Waits for the tensor that the previous rank sends for `key`."""
        if key not in self._received_forms:
            forms: list[Any] = [None]
            dist.recv_object_list(forms, group=self.group, group_src=self.rank - 1, device=self.device)
            self._received_forms[key] = forms[0]
        form = self._received_forms[key]
        return _Receive.apply(torch.zeros((), requires_grad=form.requires_grad), form, self)

    def with_previous(self, tensor: Tensor, dim: int, count: int) -> Tensor:
        """Puts the last `count` entries of the previous rank, along `dim`, before those of this one."""
        return _WithPrevious.apply(tensor, dim, count, self)

    def later(self, tensor: Tensor, dim: int, fill: float) -> Tensor:
        """Moves all entries along `dim` one place to the front, over the ranks; `fill` is the last one."""
        return _Later.apply(tensor, dim, fill, self)

    def settle(self) -> None:
        """Waits until all that was sent has arrived, or on a GPU lets the device wait."""
        for work, _ in self._in_flight:
            if work is not None:
                work.wait()
        self._in_flight.clear()

    def _send_to(self, peer: int, tensor: Tensor) -> None:
        tensor = tensor.contiguous()
        self._in_flight.append((dist.isend(tensor, group=self.group, group_dst=peer), tensor))

    def _received_from(self, peer: int, form: _Form) -> Tensor:
        tensor = torch.empty(form.shape, dtype=form.dtype, device=self.device)
        dist.recv(tensor, group=self.group, group_src=peer)
        return tensor

    def _shifted(self, tensor: Tensor, step: int, fill: float = 0.0) -> Tensor:
        """Passes a tensor on to the rank `step` further; returns the one that comes, `fill` where none does."""
        tensor, received = tensor.contiguous(), torch.full_like(tensor, fill, memory_format=torch.contiguous_format)
        operations = []
        if 0 <= self.rank + step < self.size:
            operations.append(dist.P2POp(dist.isend, tensor, group=self.group, group_peer=self.rank + step))
        if 0 <= self.rank - step < self.size:
            operations.append(dist.P2POp(dist.irecv, received, group=self.group, group_peer=self.rank - step))
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        return received


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, neighbors: Neighbors) -> Tensor:
        ctx.neighbors, ctx.form = neighbors, _Form(tensor.shape, tensor.dtype, False)
        neighbors._send_to(neighbors.rank + 1, tensor)
        return torch.zeros((), device=tensor.device)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.neighbors._received_from(ctx.neighbors.rank + 1, ctx.form), None


class _Receive(torch.autograd.Function):
    """`anchor` carries whether the sender needs a gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, form: _Form, neighbors: Neighbors) -> Tensor:
        ctx.neighbors = neighbors
        return neighbors._received_from(neighbors.rank - 1, form)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.neighbors._send_to(ctx.neighbors.rank - 1, gradient)
        return None, None, None


class _WithPrevious(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, count: int, neighbors: Neighbors) -> Tensor:
        ctx.dim, ctx.count, ctx.neighbors = dim, count, neighbors
        length = tensor.shape[dim]
        previous = neighbors._shifted(tensor.narrow(dim, length - count, count), 1)
        return tensor.clone() if neighbors.is_first else torch.cat((previous, tensor), dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        num_before = 0 if ctx.neighbors.is_first else ctx.count
        length = gradient.shape[ctx.dim] - num_before
        own = gradient.narrow(ctx.dim, num_before, length).clone()
        last = own.narrow(ctx.dim, length - ctx.count, ctx.count)
        before = gradient.narrow(ctx.dim, 0, num_before) if num_before else torch.zeros_like(last)
        last += ctx.neighbors._shifted(before, -1)
        return own, None, None, None


class _Later(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, fill: float, neighbors: Neighbors) -> Tensor:
        ctx.dim, ctx.neighbors = dim, neighbors
        following = neighbors._shifted(tensor.narrow(dim, 0, 1), -1, fill)
        return torch.cat((tensor.narrow(dim, 1, tensor.shape[dim] - 1), following), dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        length = gradient.shape[ctx.dim]
        previous = ctx.neighbors._shifted(gradient.narrow(ctx.dim, length - 1, 1), 1)
        return torch.cat((previous, gradient.narrow(ctx.dim, 0, length - 1)), ctx.dim), None, None, None
