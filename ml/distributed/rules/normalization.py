"""Rules of normalizations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ml.distributed.collectives import Copy, Sum
from ml.distributed.local import Gradient, Local, TensorAxis
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.whole import Positionwise
from ml.layers.normalization import FixedRMSNorm, GatedRMSNorm, LayerNorm, NoNorm, RMSNorm


class NormRule(Positionwise):
    """A normalization of the residual stream, or of each head within a divided layer: whole on every rank."""

    def within(self, layer: nn.Module, local: Local) -> None:
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.PARTIAL)


class GroupedNormRule(NormRule):
    """A normalization of groups of channels that are divided, such as all heads: a group may lie on several ranks."""

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        assert isinstance(layer, RMSNorm | FixedRMSNorm | LayerNorm)
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.PARTIAL, rows=rows)
        if layer.num_groups % local.axis.size == 0:
            local.resize(layer, "num_groups")
        elif isinstance(layer, LayerNorm):
            raise self._refusal(layer, local, "a group of channels")
        else:
            across = partial(_normalized_over_ranks, layer.epsilon, layer.num_groups, local.axis)
            vars(layer)["normalized"] = lambda part: across(part[..., None, :]).flatten(-2)


class GatedNormRule(NormRule):
    """`GatedRMSNorm`, also over channels that are divided: a group may lie on several ranks, or a rank have several."""

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        assert isinstance(layer, GatedRMSNorm)
        local.replicate(layer, "weight", Gradient.PARTIAL, rows=rows)
        num_groups = layer.num_groups
        if num_groups % local.axis.size == 0:
            local.resize(layer, "num_groups")
        else:
            local.show_as(layer, "num_groups", 1)
            vars(layer)["normalized"] = partial(_normalized_over_ranks, layer.epsilon, num_groups, local.axis)


def _normalized_over_ranks(epsilon: float, num_groups: int, axis: TensorAxis, part: Tensor) -> Tensor:
    """A rank's part (..., 1, C) of a group of channels over the root mean square of the whole group.

    One collective sums the squares of all groups, for which a rank adds to its own group alone.
    """
    wide = part.to(torch.promote_types(part.dtype, torch.float32))
    squares = wide.square().sum(-1)  # (..., 1)
    group = axis.rank * num_groups // axis.size
    squares = torch.nn.functional.pad(squares, (group, num_groups - 1 - group))  # (..., G)
    sums = Copy.apply(Sum.apply(squares, axis.group), axis.group)[..., group : group + 1]
    mean = sums[..., None] * (num_groups / (axis.size * part.shape[-1]))
    return (wide * torch.rsqrt(mean + epsilon)).to(part.dtype)


for _kind in (RMSNorm, FixedRMSNorm, LayerNorm):
    register_rule(_kind, GroupedNormRule())
register_rule(NoNorm, NormRule())
register_rule(GatedRMSNorm, GatedNormRule())
