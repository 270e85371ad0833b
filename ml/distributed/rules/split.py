"""The rule of layers between two linear projections: divided by outputs of the first and inputs of the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ml.distributed.local import Local, TensorAxis
from ml.distributed.rules.rule import Rule
from ml.distributed.rules.whole import rule_of


@dataclass(frozen=True)
class Split(Rule):
    """A layer of which each rank computes some of the heads or channels (Shoeybi et al. 2019, Megatron-LM).

    Every rank reads the whole input, and the outputs of the ranks are summed. All arguments are names of attributes;
    None among the attributes is skipped.

    Args:
        columns: Linear layers divided by their outputs.
        rows: Linear layers divided by their inputs, whose outputs are added to the output of the layer.
        inner: Layers applied to each head, or each part of the channels, in between; every rank has them whole.
        vectors: Own parameters divided along their first dimension.
        segments: Sizes of the segments of the channels of a child, by its name, given the layer. Each rank computes a
            part of each segment.
        sizes: Numbers of heads or groups, which the number of ranks must divide.
        own: Parameters and children that a derived rule places itself.
        context: See `Rule`.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    segments: Mapping[str, Callable[[Any], tuple[int, ...]]] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    context: Literal["keys", "state", "children"] | None = None

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        kind = type(layer).__name__
        for name in self.sizes:
            value = getattr(layer, name)
            if value % size:
                return f"{kind}.{name} ({value}) is not divisible by Mesh.tensor ({size})"
        for role, name, child in self._children(layer):
            if getattr(type(rule_of(child)), role) is getattr(Rule, role):
                return f"{kind}.{name} ({type(child).__name__}) has no rule for Mesh.tensor within a {kind}"
            misfits = {"row": rule_of(child).misfit_of_row, "column": rule_of(child).misfit_of_column}
            if role in misfits and (problem := misfits[role](child, size)):
                return f"{kind}.{name}: {problem}"
        known = {*self.columns, *self.rows, *self.inner, *self.vectors, *self.segments, *self.own}
        for name, _ in layer.named_parameters():
            if name.partition(".")[0] not in known:
                return f"{kind}.{name} is not in the rule of {kind} for Mesh.tensor"
        return None

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        local = Local(axis)
        self.place(layer, local)
        local.around(layer, enter=axis.enter, leave=axis.leave)

    def place(self, layer: nn.Module, local: Local) -> None:
        """Places the parameters of the layer and shows its sizes; for rules that place more."""
        for role, name, child in self._children(layer):
            channels = (self.channels_of(layer, name, local.axis),) if role == "channels" else ()
            getattr(rule_of(child), role)(child, local, *channels)
        for name in self.vectors:
            local.shard(layer, name, 0)
        for name in self.sizes:
            local.resize(layer, name)

    def channels_of(self, layer: nn.Module, name: str, axis: TensorAxis) -> list[slice]:
        """The channels of a child that this rank computes."""
        channels, before = [], 0
        for size in self.segments[name](layer):
            start = before + axis.start(size)
            channels.append(slice(start, start + axis.share(size)))
            before += size
        return channels

    def _children(self, layer: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        roles = {"column": self.columns, "row": self.rows, "within": self.inner, "channels": self.segments}
        for role, names in roles.items():
            for name in names:
                child = getattr(layer, name)
                if child is not None:
                    yield role, name, child
