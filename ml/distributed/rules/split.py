"""The rule of layers between two linear projections: divided by outputs of the first and inputs of the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

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
        sizes: Numbers of heads or groups, which the number of ranks must divide.
        context: See `Rule`.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
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
        known = {*self.columns, *self.rows, *self.inner, *self.vectors}
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
        for role, _, child in self._children(layer):
            getattr(rule_of(child), role)(child, local)
        for name in self.vectors:
            local.shard(layer, name, 0)
        for name in self.sizes:
            local.resize(layer, name)

    def _children(self, layer: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        for role, names in (("column", self.columns), ("row", self.rows), ("inner", self.inner)):
            for name in names:
                child = getattr(layer, name)
                if child is not None:
                    yield role, name, child
