"""Rule of softmax attention."""

from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.split import Split
from ml.layers.mixers.attention import Attention

register_rule(
    Attention,
    Split(
        columns=("query", "key", "value", "gate"),
        rows=("output",),
        inner=("query_norm", "key_norm"),
        vectors=("sinks",),
        sizes=("num_heads", "num_kv_heads"),
        context="keys",
    ),
)
