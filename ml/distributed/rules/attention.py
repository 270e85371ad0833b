"""Rule of softmax attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mixers.attention import Attention


@dataclass(frozen=True)
class AttentionRule(Split):
    """`Attention`, whose queries see the keys of a window, or all earlier ones."""

    def reach(self, layer: nn.Module) -> int | None:
        assert isinstance(layer, Attention)
        return None if layer.window_size is None else layer.window_size - 1


register_rule(
    Attention,
    AttentionRule(
        columns=("query", "key", "value", "gate"),
        rows=("output",),
        inner=("query_norm", "key_norm"),
        vectors=("sinks",),
        sizes=("num_heads", "num_kv_heads"),
        context="keys",
    ),
)
