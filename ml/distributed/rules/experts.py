"""Rules of mixtures of experts: each rank computes a part of the width of every expert, on all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ml.distributed.collectives import Copy, Part, Sum, Whole
from ml.distributed.local import TIME, Local, TensorAxis
from ml.distributed.rules.rule import Rule, register_rule
from ml.distributed.rules.split import Split
from ml.distributed.rules.whole import Positionwise, rule_of
from ml.layers.experts import Experts
from ml.layers.grouped_experts import ALIGNMENT
from ml.layers.moe import MixtureOfExperts


class MixtureRule(Positionwise):
    """`MixtureOfExperts`: the router is whole, and chooses for all positions of a sequence on every rank.

    So its losses and loads are those of one process, equal on all ranks. Where the residual stream is divided along
    time it is gathered first; the layers within compute as where it is not divided.
    """

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        super().tensor(layer, axis)
        for part in layer.modules():
            if part in axis.shown:  # a compiled block shows it before the stream is gathered
                axis.shown[part].read_all_positions()
        inner, stream = layer.forward, axis.stream

        def on_all_positions(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not stream.is_divided:
                return inner(x, *args, **kwargs)
            stream.is_divided = False
            try:
                y = inner(Whole.apply(x, TIME, axis.size, axis.rank, axis.group), *args, **kwargs)
            finally:
                stream.is_divided = True
            return Part.apply(y, TIME, axis.size, axis.rank, axis.group)

        layer.forward = on_all_positions


class ExpertsRule(Rule):
    """`Experts`: each expert is divided as by its own rule, and the outputs are summed once for all of them."""

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        assert isinstance(layer, Experts)
        for name, expert in layer.named_children():
            rule = rule_of(expert)
            if not isinstance(rule, Split):
                return f"Experts.{name} ({type(expert).__name__}) has no rule for Mesh.tensor within Experts"
            if problem := rule.misfit(expert, size):
                return problem
        return _obstacle_to_grouping(layer, size) if layer.grouped else None

    def parts(self, layer: nn.Module) -> Mapping[str, nn.Module]:
        """None: their rules would sum the outputs of every expert."""
        return {}

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        assert isinstance(layer, Experts)
        local = Local(axis)
        for expert in layer.in_order:
            rule = rule_of(expert)
            assert isinstance(rule, Split)
            rule.place(expert, local)
        if layer.obstacle_to_grouping is None:
            layer.obstacle_to_grouping = _obstacle_to_grouping(layer, axis.size)
        local.around(layer)
        inner = layer.forward

        def summed(x: Tensor, weights: Tensor, chosen: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            x, weights = Copy.apply(x, axis.group), Copy.apply(weights, axis.group)
            return Sum.apply(inner(x, weights, chosen, *args, **kwargs), axis.group)

        vars(layer)["forward"] = summed


def _obstacle_to_grouping(layer: Experts, size: int) -> str | None:
    """Reason that grouped products cannot compute the parts of `size` ranks; None where they can."""
    expert = layer.in_order[0]  # as all others, where they are grouped
    rule = rule_of(expert)
    assert isinstance(rule, Split)
    width = getattr(expert, rule.columns[0]).out_features
    if width % (size * ALIGNMENT) == 0:
        return None
    kind = type(expert).__name__
    return (
        f"MixtureOfExperts.grouped takes parts of an expert whose widths are multiples of {ALIGNMENT}, and "
        f"{kind}.intermediate_size ({width}) is divided over Mesh.tensor ({size})"
    )


register_rule(MixtureOfExperts, MixtureRule())
register_rule(Experts, ExpertsRule())
