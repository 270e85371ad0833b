"""Rules of normalizations."""

from __future__ import annotations

from torch import nn

from ml.distributed.local import Gradient, Local
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.whole import Positionwise
from ml.layers.normalization import FixedRMSNorm, LayerNorm, NoNorm, RMSNorm


class NormRule(Positionwise):
    """A normalization of the residual stream, or of each head within a divided layer: whole on every rank."""

    def inner(self, layer: nn.Module, local: Local) -> None:
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.PARTIAL)


for _kind in (RMSNorm, FixedRMSNorm, LayerNorm, NoNorm):
    register_rule(_kind, NormRule())
