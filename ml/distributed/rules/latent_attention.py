"""Rule of multi-head latent attention."""

from __future__ import annotations

from torch import nn

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.whole import AllPositions
from ml.layers.mixers.latent_attention import LatentAttention


class LatentAttentionRule(AllPositions):
    """`LatentAttention`, whose queries see the latent vectors of a window, or all earlier ones."""

    context = "keys"

    def reach(self, layer: nn.Module) -> int | None:
        assert isinstance(layer, LatentAttention)
        return None if layer.window_size is None else layer.window_size - 1


register_rule(LatentAttention, LatentAttentionRule())
