"""Rule of softmax attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ml.distributed.local import Local, TensorAxis
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.alibi import AlibiHeads
from ml.layers.mixers.attention import Attention


@dataclass(frozen=True)
class AttentionRule(Split):
    """`Attention`, whose queries see the keys of a window, or all earlier ones.

    Norms with one weight for all heads are whole on every rank; each rank computes its heads of the others, whose
    statistics are summed over the ranks where all heads are normalized together.
    """

    def _children(self, layer: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
        assert isinstance(layer, Attention)
        for role, name, child in super()._children(layer):
            yield "channels" if role == "within" and layer.norm_over != "head" else role, name, child

    def place(self, layer: nn.Module, local: Local) -> None:
        assert isinstance(layer, Attention)
        if layer.alibi_heads is not None:
            first, count = local.axis.start(layer.num_heads), local.axis.share(layer.num_heads)
            local.show_as(layer, "alibi_heads", AlibiHeads(first, count, layer.num_heads))
        super().place(layer, local)

    def channels_of(self, layer: nn.Module, name: str, axis: TensorAxis) -> list[slice]:
        """The channels of this rank's heads."""
        assert isinstance(layer, Attention)
        size = (layer.num_heads if name == "query_norm" else layer.num_kv_heads) * layer.head_size
        return [slice(axis.start(size), axis.start(size) + axis.share(size))]

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
