"""Qwen 2-MoE: experts and a shared one with a gate in some or all blocks, and windows in some or none."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    NORMS,
    QUERY_KEY_VALUE,
    attention,
    gated_mlp,
    mlp_bias,
    rms_norm,
    sizes,
    width,
)
from ml.interop.experts import RouterLoss, expert_rows, narrow_experts
from ml.interop.families.qwen import WINDOW_FIELDS, attention_kinds
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Row, Set
from ml.interop.kinds import Kinds, attention_kind, written_attention_kinds
from ml.interop.rotary import Rope
from ml.interop.sparse_blocks import SPARSE_FIELDS, mlp_kind, sparse_blocks, written_sparse_blocks
from ml.interop.tensors import linear_rows
from ml.layers import Attention, GatedMLP, Linear
from ml.layers.moe import MixtureOfExperts

_SLIDING = "_sliding"


def with_shared(scope: str, chosen: int = 4, count: int = 60, normalized: bool = False) -> tuple[Row, ...]:
    """Experts and a shared one with a gate in the blocks of a scope; the rest are values of absent fields."""
    return (
        *narrow_experts(
            "num_experts", "num_local_experts", chosen=chosen, count=count, normalized=normalized, scope=scope
        ),
        Set(MixtureOfExperts, "shared_expert", GatedMLP, scope),
        Set(MixtureOfExperts, "shared_expert_gate", True, scope),
        width("shared_expert_intermediate_size", "/".join(filter(None, (scope, "shared_expert")))),
        Set(Linear, "bias", False, "shared_expert_gate"),
    )


def _kinds(fields: ConfigFields) -> list[str]:
    mixers = attention_kinds(fields, lambda index, end: index % 2 == 0 and index < end)
    pairs = zip(sparse_blocks(fields), mixers, strict=True)
    return [mlp + (_SLIDING if mixer == "sliding" else "") for mlp, mixer in pairs]


def _block(kind: str, scope: str) -> tuple[Row, ...]:
    rows = gated_mlp(scope=scope) if kind.startswith("dense") else with_shared(scope)
    if kind.endswith(_SLIDING):
        return (*rows, Field("sliding_window", Attention, "window_size", default=4096, scope=scope))
    return (*rows, Set(Attention, "window_size", None, scope))


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    mixers = ["sliding" if kind.endswith(_SLIDING) else "full" for kind in kinds]
    uses = {"use_sliding_window": "sliding" in mixers}
    return {**written_sparse_blocks(kinds), **written_attention_kinds(mixers), **uses}


SHARED_EXPERT = linear_rows(
    {
        f"model.layers.{{i}}.mlp.shared_expert.{part}_proj": f"{{block}}.mlp.shared_expert.{part}"
        for part in ("gate", "up", "down")
    }
    | {"model.layers.{i}.mlp.shared_expert_gate": "{block}.mlp.shared_expert_gate"},
    ("weight",),
)
QWEN_2_MOE = Family(
    "Qwen 2-MoE",
    {"qwen2_moe": "Qwen2MoeForCausalLM"},
    (
        *sizes(),
        Kinds(
            (*SPARSE_FIELDS, *WINDOW_FIELDS),
            _kinds,
            {kind: partial(_block, kind) for kind in ("dense", "sparse", f"dense{_SLIDING}", f"sparse{_SLIDING}")},
            lambda block: mlp_kind(block) + (_SLIDING if attention_kind(block) == "sliding" else ""),
            _written,
            "mlp_only_layers",
        ),
        *attention(kv_heads=16),
        Bias(QUERY_KEY_VALUE, Linear, Attention, "qkv_bias", True),
        Bias(("output",), Linear, Attention, default=False),
        *rms_norm(),
        mlp_bias(),
        RouterLoss(),
        Rope(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *NORMS, *GATED_MLP, *expert_rows(), *SHARED_EXPERT),
)

FAMILIES = (QWEN_2_MOE,)
