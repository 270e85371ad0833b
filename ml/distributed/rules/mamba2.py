"""Rule of Mamba-2: heads are divided, with the groups of them that share B and C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ml.distributed.local import Local, TensorAxis
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.distributed.rules.whole import rule_of
from ml.layers.mixers.mamba2 import Mamba2
from ml.layers.normalization import GatedRMSNorm


@dataclass(frozen=True)
class Mamba2Rule(Split):
    """`Mamba2`: a rank computes B and C of its groups, or of the one group that its heads and those of others share."""

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        assert isinstance(layer, Mamba2)
        for kind, module in (("Mamba2", layer), ("GatedRMSNorm", layer.norm)):
            if isinstance(module, Mamba2 | GatedRMSNorm) and module.num_groups % size and size % module.num_groups:
                groups = f"{kind}.num_groups ({module.num_groups})"
                return f"{groups} neither divides Mesh.tensor ({size}) nor is divisible by it"
        return super().misfit(layer, size)

    def place(self, layer: nn.Module, local: Local) -> None:
        assert isinstance(layer, Mamba2)
        super().place(layer, local)
        groups = _groups(layer, local.axis)
        for linear in (layer.B, layer.C):
            if layer.num_groups % local.axis.size == 0:
                rule_of(linear).column(linear, local)
            else:
                rule_of(linear).channels(linear, local, [_states(layer, groups)])
        local.show_as(layer, "num_groups", groups.stop - groups.start)

    def channels_of(self, layer: nn.Module, name: str, axis: TensorAxis) -> list[slice]:
        if name != "convolution":
            return super().channels_of(layer, name, axis)
        assert isinstance(layer, Mamba2)
        (heads,) = super().channels_of(layer, name, axis)
        size, of_groups = layer.num_heads * layer.head_size, layer.num_groups * layer.state_size
        B = _states(layer, _groups(layer, axis), after=size)
        C = _states(layer, _groups(layer, axis), after=size + of_groups)
        return [heads, B, C]


def _groups(layer: Mamba2, axis: TensorAxis) -> slice:
    """The groups of the heads of this rank."""
    first = axis.rank * layer.num_groups // axis.size
    return slice(first, first + max(layer.num_groups // axis.size, 1))


def _states(layer: Mamba2, groups: slice, after: int = 0) -> slice:
    """The channels of some groups in B or C, which begin after others."""
    return slice(after + groups.start * layer.state_size, after + groups.stop * layer.state_size)


def _channels(layer: Any) -> tuple[int]:
    return (layer.x.out_features,)


register_rule(
    Mamba2,
    Mamba2Rule(
        columns=("gate", "x", "dt"),
        rows=("output",),
        vectors=("dt_bias", "A_log", "D"),
        segments={"convolution": _channels, "norm": _channels},
        sizes=("num_heads",),
        own=("B", "C"),
        context="state",
    ),
)
