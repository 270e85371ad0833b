"""Equal experts computed together, by one grouped matrix product per layer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.layers.linear import Linear
from ml.layers.mlp import MLP, GatedMLP

ALIGNMENT = 8  # `grouped_mm` takes rows of whole 16 bytes: in bfloat16, so many entries


def grouped_experts(
    experts: Sequence[nn.Module], x: Tensor, weights: Tensor, chosen: Tensor, weight_on_input: bool = False
) -> Tensor:
    """Σ_j weight_tj · expert_j(x_t): tokens (N, H) and their choices (N, k) to (N, H). Does not synchronize.

    The number of rows is fixed, so a choice of no expert, whose weight is 0, passes the last one.

    Args:
        experts: The experts.
        x: Tokens, (N, H).
        weights: (N, k).
        chosen: Numbers of the experts, (N, k).
        weight_on_input: Multiplies the inputs by the weights, instead of the outputs.
    """
    if weight_on_input:
        return _with_weighted_inputs(experts, x, weights, chosen)
    order = Order.by_expert(chosen.clamp(max=len(experts) - 1), len(experts))
    y = GROUPINGS[type(experts[0])].compute(experts, GatherRows.apply(x, order), order)  # (N k, H)
    return WeightedSum.apply(y, weights, order)


def _with_weighted_inputs(experts: Sequence[nn.Module], x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """Σ_j expert_j(weight_tj · x_t)."""
    order = Order.by_expert(chosen.clamp(max=len(experts) - 1), len(experts))
    rows = weighted_rows(GatherRows.apply(x, order), weights, order)
    y = GROUPINGS[type(experts[0])].compute(experts, rows, order)
    return WeightedSum.apply(y, (chosen < len(experts)).to(weights.dtype), order)


def weighted_rows(rows: Tensor, weights: Tensor, order: "Order") -> Tensor:
    """Rows (N k, H) in order, multiplied by the weights (N, k) of their choices."""
    return rows * weights.flatten()[order.slots].unsqueeze(-1).to(rows.dtype)


class Order(NamedTuple):
    """The choices of N tokens, k each, sorted by expert.

    Attributes:
        experts: Expert of each sorted choice (N k).
        tokens: Token of each sorted choice (N k).
        ends: End of each expert's choices (E).
        slots: Index of each sorted choice before sorting (N k).
        places: Indices of a token's choices after sorting (N, k).
    """

    experts: Tensor
    tokens: Tensor
    ends: Tensor
    slots: Tensor
    places: Tensor

    @classmethod
    def by_expert(cls, experts: Tensor, num_experts: int) -> "Order":
        """Sorts the experts (N, k) of the tokens; within an expert the tokens stay in order."""
        sorted_experts, slots = experts.flatten().sort(stable=True)
        places = torch.empty_like(slots).scatter_(0, slots, torch.arange(len(slots), device=slots.device))
        numbers = torch.arange(num_experts, device=slots.device)
        ends = torch.searchsorted(sorted_experts, numbers, right=True, out_int32=True)
        return cls(sorted_experts, slots // experts.shape[1], ends, slots, places.view_as(experts))


class GatherRows(torch.autograd.Function):
    """x[tokens]: (N, H) -> (N k, H). The backward pass gathers too, where `index_select` would scatter row by row."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Order) -> Tensor:
        ctx.places = order.places
        return x.index_select(0, order.tokens)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return rows_of_tokens(gradient, ctx.places).sum(1), None


class WeightedSum(torch.autograd.Function):
    """Σ_j weights_tj · y[places_tj]: (N k, H) -> (N, H)."""

    @staticmethod
    def forward(ctx, y: Tensor, weights: Tensor, order: Order) -> Tensor:
        ctx.save_for_backward(y, weights)
        ctx.order = order
        y = torch.bmm(weights.to(y.dtype).unsqueeze(1), rows_of_tokens(y, order.places))  # (N, 1, H)
        # Not `squeeze`: FSDP warns of a module that returns a view.
        return torch.ops.aten._unsafe_view(y, (len(y), y.shape[-1]))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        y, weights = ctx.saved_tensors
        rows = gradient.index_select(0, ctx.order.tokens)
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (rows * y).sum(-1, dtype=weights.dtype)[ctx.order.places]
        return rows * weights.to(y.dtype).flatten()[ctx.order.slots].unsqueeze(-1), weight_gradient, None


class Stack(torch.autograd.Function):
    """Tensors of one shape stacked in a dtype: `torch.stack(tensors).to(dtype)`, but each is copied only once."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.dtype = tensors[0].dtype
        stacked = tensors[0].new_empty(len(tensors), *tensors[0].shape, dtype=dtype)
        torch._foreach_copy_(stacked.unbind(), tensors)
        return stacked

    @staticmethod
    def backward(ctx, gradient: Tensor):
        needed = ctx.needs_input_grad[1:]
        parts = zip(gradient.unbind(), needed, strict=True)
        return None, *(part.to(ctx.dtype) if is_needed else None for part, is_needed in parts)


def rows_of_tokens(rows: Tensor, places: Tensor) -> Tensor:
    """The rows of each token: (N k, H), (N, k) -> (N, k, H)."""
    return rows.index_select(0, places.flatten()).unflatten(0, places.shape)


def grouped_linear(x: Tensor, layers: Sequence[Linear], order: Order) -> Tensor:
    """Layer e on the choices of expert e: (N k, in) -> (N k, out)."""
    weight = Stack.apply(x.dtype, *(layer.whole_weight() for layer in layers))  # (E, out, in)
    y = F.grouped_mm(x, weight.transpose(-2, -1), offs=order.ends)
    if all(layer.bias is None for layer in layers):
        return y
    absent = layers[0].weight.new_zeros(layers[0].out_features)
    biases = torch.stack([absent if layer.bias is None else layer.bias for layer in layers])
    return y + F.embedding(order.experts, biases.to(y.dtype))


def grouped_mlp(experts: Sequence[MLP], x: Tensor, order: Order) -> Tensor:
    """As `MLP`."""
    up = grouped_linear(x, _layers(experts, "up"), order)
    return grouped_linear(experts[0].activation(up), _layers(experts, "down"), order)


def grouped_gated_mlp(experts: Sequence[GatedMLP], x: Tensor, order: Order) -> Tensor:
    """As `GatedMLP`."""
    gate = grouped_linear(x, _layers(experts, "gate"), order)
    up = grouped_linear(x, _layers(experts, "up"), order)
    return experts[0].scaled(grouped_linear(experts[0].gated(gate, up), _layers(experts, "down"), order))


def _layers(experts: Sequence[nn.Module], name: str) -> list[Linear]:
    return [getattr(expert, name) for expert in experts]


class Grouping(NamedTuple):
    """Grouped computation of a type of expert, its linear layers, and the attributes that all experts have alike."""

    compute: Callable[[Sequence[Any], Tensor, Order], Tensor]  # of experts of the type that has this grouping
    layers: tuple[str, ...]
    settings: tuple[str, ...] = ("activation",)


_GATED = ("activation", "limit", "up_offset", "gate_scale", "output_scale")
GROUPINGS: dict[type[nn.Module], Grouping] = {
    MLP: Grouping(grouped_mlp, ("up", "down")),
    GatedMLP: Grouping(grouped_gated_mlp, ("gate", "up", "down"), _GATED),
}


def obstacle_to_grouping(experts: Sequence[nn.Module]) -> str | None:
    """Reason that grouped products cannot compute `experts`; None where they can."""
    types = {type(expert) for expert in experts}
    if len(types) > 1 or not types <= GROUPINGS.keys():
        names = ", ".join(sorted(kind.__name__ for kind in types))
        return f"takes experts that are all GatedMLP or all MLP, not {names}"
    for name in GROUPINGS[type(experts[0])].settings:
        if len({comparable(getattr(expert, name)) for expert in experts}) > 1:
            return f"takes experts with one {name}"
    for name in GROUPINGS[type(experts[0])].layers:
        layers = [getattr(expert, name) for expert in experts]
        if obstacle := _obstacle_in(layers):
            return f"{obstacle} as {name}"
    return None


def _obstacle_in(modules: Sequence[nn.Module]) -> str | None:
    layers = [module for module in modules if isinstance(module, Linear)]
    others = sorted({type(module).__name__ for module in modules if type(module) is not Linear})
    if others:
        return f"takes Linear layers, not {', '.join(others)}"
    if kernels := sorted({type(layer.kernel).__name__ for layer in layers if layer.kernel is not None}):
        return f"takes layers without a kernel, not with {', '.join(kernels)}"
    if len({layer.weight.shape for layer in layers}) > 1:
        return "takes experts of one size, not layers of several"
    if any(size % ALIGNMENT for size in layers[0].weight.shape):
        return f"takes layers whose sizes are multiples of {ALIGNMENT}, not {tuple(layers[0].weight.shape)}"
    if any(layer.adapter is not None and layer.adapter.dropout for layer in layers):
        return "takes adapters without dropout, not layers with it"
    return None


def comparable(setting: object) -> object:
    """Comparison key of a setting: for a partial function, the function and its arguments."""
    if not isinstance(setting, partial):
        return setting
    return setting.func, setting.args, tuple(sorted(setting.keywords.items()))
