"""Expert parallelism: each rank holds some experts of every mixture, and tokens travel to the ranks of theirs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ml.distributed.collectives import AllToAll, exchanged
from ml.distributed.mesh import MeshError
from ml.layers.context import Context
from ml.layers.experts import Experts, computing_dtype
from ml.layers.grouped_experts import GatherRows, Order, WeightedSum, weighted_rows
from ml.layers.tracing import has_values


def expert_parallel(model: nn.Module, axis: DeviceMesh) -> None:
    """Divides the experts of every mixture over the ranks of an axis, in place.

    A rank keeps `num_experts / size` neighboring experts of each mixture, under their names, so their initial values
    and their names in checkpoints are those of one process. Routers and shared experts are not changed.

    Before the tensor axis divides each expert.

    Args:
        model: The model, on the meta device.
        axis: The mesh of the ranks among which the experts are divided; their data differ.

    Raises:
        MeshError: The experts cannot be divided; see `misfit_of_experts`.
    """
    found = mixtures(model)  # none, in some stages of a pipeline
    if obstacle := _indivisible({len(module.in_order) for module in found}, axis.size()):
        raise MeshError(obstacle)
    for module in found:
        Dispatch(module, axis)


def mixtures(model: nn.Module) -> list[Experts]:
    """Returns the experts of every mixture of a model."""
    return [module for module in model.modules() if isinstance(module, Experts)]


def misfit_of_experts(model: nn.Module, size: int) -> str | None:
    """Returns why the experts of a model cannot be divided over `size` ranks; None where they can.

    Args:
        model: The model, not yet divided.
        size: `Mesh.expert`.
    """
    if size == 1:
        return None
    numbers = {len(module.in_order) for module in mixtures(model)}
    if not numbers:
        return f"Mesh.expert is {size}, and the model has no MixtureOfExperts: it must be 1"
    return _indivisible(numbers, size)


def _indivisible(numbers: set[int], size: int) -> str | None:
    """Names the first number of experts that is not divisible; None where all are."""
    for number in sorted(numbers):
        if number % size:
            return (
                f"MixtureOfExperts.num_experts ({number}) is not divisible by Mesh.expert ({size}), "
                f"which can {_divisors(math.gcd(*numbers))}"
            )
    return None


def _divisors(number: int) -> str:
    """Formulates what a divisor of a number can be."""
    *others, last = [str(divisor) for divisor in range(1, number + 1) if number % divisor == 0]
    return f"be {', '.join(others)} or {last}" if others else f"only be {last}"


class Dispatch:
    """Replaces the `forward` of `Experts`: tokens are sent to the ranks of their experts, and the outputs back.

    The replaced `forward` computes the experts that are here, grouped or one at a time as before, on the rows that
    came. Every rank takes part in three exchanges a pass: the numbers of rows, the rows and the outputs. The sizes of
    the exchanges are read once by the host, which synchronizes with a CUDA device; experts computed one at a time
    synchronize once more. Recomputation in the backward pass repeats the exchanges in every rank: it routes the same
    inputs, and a rank without rows computes and records the same operations as the others.

    Args:
        experts: All experts of a mixture; changed in place.
        axis: The mesh of the ranks among which they are divided.
    """

    def __init__(self, experts: Experts, axis: DeviceMesh):
        self.group: dist.ProcessGroup = axis.get_group()
        self.num_ranks = axis.size()
        self.num_experts = len(experts.in_order)
        self.num_here = self.num_experts // self.num_ranks
        first = axis.get_local_rank() * self.num_here
        self.experts = experts
        self.compute = experts.forward
        for index, name in enumerate([name for name, _ in experts.named_children()]):
            if not first <= index < first + self.num_here:
                delattr(experts, name)
        vars(experts)["forward"] = self.forward

    @torch.compiler.disable
    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor, context: Context | None = None) -> Tensor:
        """As `Experts.forward`: tokens (N, H), with the weights and numbers (N, k) of their experts, to (N, H)."""
        order = Order.by_expert(chosen, self.num_experts)
        route = self.route(order)
        rows = GatherRows.apply(x.to(computing_dtype(x)), order)  # (N k, H), those of no expert last
        if self.experts.weight_on_input:
            rows = weighted_rows(rows, weights, order)
            weights = (chosen < self.num_experts).to(weights.dtype)
        num_rows, num_sent = len(rows), sum(route.sent)
        rows = rows[:num_sent]
        rows = AllToAll.apply(rows, route.received, route.sent, self.group)
        rows = AllToAll.apply(self.outputs(rows, route.experts, context), route.sent, route.received, self.group)
        return WeightedSum.apply(F.pad(rows, (0, 0, 0, num_rows - num_sent)), weights, order)

    def route(self, order: Order) -> Route:
        """Exchanges the numbers of rows; synchronizes."""
        counts = F.pad(order.ends, (1, 0)).diff().to(torch.int64)  # (E)
        even = [self.num_here] * self.num_ranks
        coming = exchanged(counts, even, even, self.group).view(self.num_ranks, self.num_here)
        if has_values(counts):
            sums = torch.stack((coming.sum(1), counts.view_as(coming).sum(1)))
            received, sent = sums.tolist()
        else:
            received = sent = [len(order.tokens) // self.num_ranks] * self.num_ranks
            sent[-1] += len(order.tokens) - sum(sent)
        numbers = torch.arange(self.num_here, device=counts.device).repeat(self.num_ranks)
        experts = numbers.repeat_interleave(coming.flatten(), output_size=sum(received))
        return Route(received, sent, experts)

    def outputs(self, rows: Tensor, experts: Tensor, context: Context | None) -> Tensor:
        """Outputs of the experts of this rank: rows (M, H) and the expert (M) of each to (M, H)."""
        num_rows = len(rows)
        if num_rows == 0 and self.experts.is_grouped(rows):  # one row of zeros: a kernel may refuse an empty matrix
            rows, experts = F.pad(rows, (0, 0, 0, 1)), F.pad(experts, (0, 1))
        ones = rows.new_ones(len(rows), 1, dtype=torch.promote_types(rows.dtype, torch.float32))
        return self.compute(rows, ones, experts.unsqueeze(-1), context)[:num_rows]


class Route(NamedTuple):
    """The exchange of the rows of one pass.

    Attributes:
        received: Number of rows from each rank.
        sent: Number of rows to each rank.
        experts: Expert of this rank that each received row is for, counted from its first.
    """

    received: list[int]
    sent: list[int]
    experts: Tensor
