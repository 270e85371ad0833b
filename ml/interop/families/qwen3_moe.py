"""Qwen 3-MoE: Qwen 3 with experts in some or all blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.config import ImportedValue
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    NORMS,
    QUERY_KEY_NORM,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    query_key_norm,
    rms_norm,
    sizes,
)
from ml.interop.errors import InteropError
from ml.interop.experts import RouterLoss, expert_rows, narrow_experts
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Row, View, key_of
from ml.interop.kinds import Kinds
from ml.interop.rotary import Rope
from ml.interop.sparse_blocks import SPARSE_FIELDS, mlp_kind, sparse_blocks, written_sparse_blocks
from ml.layers import Attention


@dataclass(frozen=True)
class OneWindow(Row):
    """A window in all blocks, if `use_sliding_window` is true."""

    names = ("use_sliding_window", "sliding_window")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        uses, window = fields.get("use_sliding_window", False), fields.get("sliding_window", 4096)
        if uses and window is None:
            raise InteropError("config.json#use_sliding_window is true, and sliding_window is null")
        if not uses:
            fields.idle.add("sliding_window")
        field = "sliding_window" if uses else "use_sliding_window"
        yield fields.value(key_of(Attention, "window_size"), window if uses else None, field)

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Attention)
        if mixer is None:
            return {}
        return {"use_sliding_window": mixer.window_size is not None, "sliding_window": mixer.window_size}


QWEN_3_MOE = Family(
    "Qwen 3-MoE",
    {"qwen3_moe": "Qwen3MoeForCausalLM"},
    (
        *sizes(),
        Kinds(
            SPARSE_FIELDS,
            sparse_blocks,
            {
                "dense": lambda scope: gated_mlp(scope=scope),
                "sparse": lambda scope: narrow_experts("num_experts", "num_local_experts", scope=scope),
            },
            mlp_kind,
            written_sparse_blocks,
            "mlp_only_layers",
        ),
        *attention(kv_heads=4),
        attention_bias(),
        *query_key_norm(),
        *rms_norm(),
        mlp_bias(),
        RouterLoss(),
        Rope(),
        OneWindow(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *NORMS, *GATED_MLP, *expert_rows()),
    frozenset(("max_window_layers",)),
)

FAMILIES = (QWEN_3_MOE,)
