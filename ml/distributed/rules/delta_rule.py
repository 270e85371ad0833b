"""Rules of the mixers with a delta rule: heads are divided."""

from __future__ import annotations

from typing import Any

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mixers.gated_delta_net import GatedDeltaNet
from ml.layers.mixers.kimi_delta_attention import KimiDeltaAttention


def _query_key_value(layer: Any) -> tuple[int, int, int]:
    return layer.query.out_features, layer.key.out_features, layer.value.out_features


register_rule(
    GatedDeltaNet,
    Split(
        columns=("query", "key", "value", "gate", "beta", "decay"),
        rows=("output",),
        inner=("norm",),
        vectors=("A_log", "dt_bias"),
        segments={"convolution": _query_key_value},
        sizes=("num_heads", "num_value_heads"),
        context="state",
    ),
)
register_rule(
    KimiDeltaAttention,
    Split(
        columns=("query", "key", "value", "beta", "decay_up", "gate_up"),
        rows=("output",),
        inner=("decay_down", "gate_down", "norm"),
        vectors=("A_log", "dt_bias"),
        segments={"convolution": _query_key_value},
        sizes=("num_heads",),
        context="state",
    ),
)
