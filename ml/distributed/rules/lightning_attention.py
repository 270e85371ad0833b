"""Rule of lightning attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ml.distributed.local import Local
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mixers.lightning_attention import LightningAttention


@dataclass(frozen=True)
class LightningAttentionRule(Split):
    """`LightningAttention`: heads are divided, each with its own decay; the norm sums its squares over the ranks."""

    def place(self, layer: nn.Module, local: Local) -> None:
        assert isinstance(layer, LightningAttention)
        local.show_as(layer, "first_head", local.axis.start(layer.num_heads))
        super().place(layer, local)


register_rule(
    LightningAttention,
    LightningAttentionRule(
        columns=("query", "key", "value", "gate"),
        rows=("output",),
        segments={"norm": lambda layer: (layer.num_heads * layer.head_size,)},
        sizes=("num_heads",),
        context="state",
    ),
)
