"""Rule of Mamba: channels are divided."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml.distributed.collectives import Copy, Sum
from ml.distributed.local import Local
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mixers.mamba import Mamba


@dataclass(frozen=True)
class MambaRule(Split):
    """`Mamba`: what its channels select, a low-rank dt, B and C, is a sum over the ranks and used by all of them."""

    def place(self, layer: nn.Module, local: Local) -> None:
        super().place(layer, local)
        assert isinstance(layer, Mamba)
        select, group = layer.selection.forward, local.axis.group

        def selected(x: Tensor) -> tuple[Tensor, ...]:
            parts = select(x)
            joined = Copy.apply(Sum.apply(torch.cat(parts, dim=-1), group), group)
            return joined.split([part.shape[-1] for part in parts], dim=-1)

        vars(layer.selection)["forward"] = selected


def _channels(layer: Mamba) -> tuple[int]:
    return (layer.intermediate_size,)


register_rule(
    Mamba,
    MambaRule(
        columns=("x", "gate", "dt"),
        rows=("dt_down", "B", "C", "output"),
        inner=("dt_norm", "B_norm", "C_norm"),
        vectors=("dt_bias", "A_log", "D"),
        segments={"convolution": _channels},
        context="state",
    ),
)
