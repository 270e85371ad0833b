"""Rules of the short convolution and of the mixer around it: channels are divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ml.distributed.local import Gradient, Local
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.distributed.rules.whole import AllPositions
from ml.layers.convolution import CausalConvolution
from ml.layers.mixers.short_convolution import ShortConvolutionMixer


class ConvolutionRule(AllPositions):
    """`CausalConvolution`, whose weight has few entries: whole on every rank, also where its channels are divided."""

    context = "state"

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.PARTIAL, rows=rows)


def _channels(layer: Any) -> tuple[int]:
    return (layer.x.out_features,)


register_rule(CausalConvolution, ConvolutionRule())
register_rule(
    ShortConvolutionMixer,
    Split(
        columns=("B", "C", "x"),
        rows=("output",),
        segments={"convolution": _channels},
        context="children",
    ),
)
