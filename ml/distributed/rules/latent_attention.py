"""Rule of multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mixers.latent_attention import LatentAttention


@dataclass(frozen=True)
class LatentAttentionRule(Split):
    """`LatentAttention`: heads are divided, and every rank computes the latent vectors, which all heads share."""

    def reach(self, layer: nn.Module) -> int | None:
        assert isinstance(layer, LatentAttention)
        return None if layer.window_size is None else layer.window_size - 1


register_rule(
    LatentAttention,
    LatentAttentionRule(
        columns=("query", "query_up", "key_up", "value_up"),
        rows=("output",),
        inner=("query_down", "query_norm", "key_value_down", "key_rotary", "key_value_norm"),
        sizes=("num_heads",),
        context="keys",
    ),
)
