"""Qwen 2-MoE and Qwen 3-MoE: mixtures of experts in some or all blocks."""

from collections.abc import Callable, Sequence
from typing import Any

from ml.interop.common import (
    ACTIVATIONS,
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    NORMS,
    QUERY_KEY_NORM,
    QUERY_KEY_VALUE,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    query_key_norm,
    rms_norm,
    sizes,
    width,
)
from ml.interop.errors import InteropError
from ml.interop.experts import RouterLoss, expert_rows, mixture
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Fixed, Part, Row, Set
from ml.interop.kinds import Kinds
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows
from ml.layers import Attention, GatedMLP, Linear, SoftmaxRouter
from ml.layers.moe import MixtureOfExperts

_FIELDS = ("num_hidden_layers", "decoder_sparse_step", "mlp_only_layers")


def sparse_blocks(fields: ConfigFields) -> list[str]:
    """Experts in every `decoder_sparse_step`-th block, unless `mlp_only_layers` has it."""
    step = fields.number("decoder_sparse_step", 1)
    dense = fields.get("mlp_only_layers", None) or []
    count = fields.number("num_hidden_layers")
    if not isinstance(dense, list) or any(type(index) is not int or not 0 <= index < count for index in dense):
        raise InteropError(f"config.json#mlp_only_layers must have indices of the {count} blocks, not {dense!r}")
    return ["dense" if i in dense or (i + 1) % step else "sparse" for i in range(count)]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    dense = [index for index, kind in enumerate(kinds) if kind == "dense"]
    return {"num_hidden_layers": len(kinds), "decoder_sparse_step": 1, "mlp_only_layers": dense}


def _blocks(sparse: Callable[[str], Sequence[Row]]) -> Kinds:
    return Kinds(
        _FIELDS,
        sparse_blocks,
        {"dense": lambda scope: gated_mlp(scope=scope), "sparse": sparse},
        lambda block: "sparse" if isinstance(block.mlp, MixtureOfExperts) else "dense",
        _written,
        "mlp_only_layers",
    )


def _inside(scope: str, name: str) -> str:
    return "/".join(filter(None, (scope, name)))


def _experts(scope: str, *aliases: str, chosen: int, count: int, normalized: bool = False) -> tuple[Row, ...]:
    return (
        *mixture("num_experts", *aliases, experts_per_token=chosen, experts=count, scope=scope),
        width("moe_intermediate_size", _inside(scope, "experts")),
        Field("norm_topk_prob", SoftmaxRouter, "normalize", default=normalized, scope=scope),
        Part("hidden_act", GatedMLP, "activation", ACTIVATIONS, "silu"),
    )


def with_shared(scope: str, chosen: int = 4, count: int = 60, normalized: bool = False) -> tuple[Row, ...]:
    """Experts and a shared one with a gate in the blocks of a scope; the rest are values of absent fields."""
    return (
        *_experts(scope, "num_local_experts", chosen=chosen, count=count, normalized=normalized),
        Set(MixtureOfExperts, "shared_expert", GatedMLP, scope),
        Set(MixtureOfExperts, "shared_expert_gate", True, scope),
        width("shared_expert_intermediate_size", _inside(scope, "shared_expert")),
        Set(Linear, "bias", False, "shared_expert_gate"),
    )


# Windows are refused: no released checkpoint has them.
_NO_WINDOWS = (Fixed("use_sliding_window", False),)
_WINDOWS = frozenset(("sliding_window", "max_window_layers", "layer_types"))
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
        _blocks(with_shared),
        *attention(kv_heads=16),
        Bias(QUERY_KEY_VALUE, Linear, Attention, "qkv_bias", True),
        Bias(("output",), Linear, Attention, default=False),
        *rms_norm(),
        mlp_bias(),
        RouterLoss(),
        Rope(),
        *_NO_WINDOWS,
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *NORMS, *GATED_MLP, *expert_rows(), *SHARED_EXPERT),
    _WINDOWS,
)
QWEN_3_MOE = Family(
    "Qwen 3-MoE",
    {"qwen3_moe": "Qwen3MoeForCausalLM"},
    (
        *sizes(),
        _blocks(lambda scope: _experts(scope, "num_local_experts", chosen=8, count=128)),
        *attention(kv_heads=4),
        attention_bias(),
        *query_key_norm(),
        *rms_norm(),
        mlp_bias(),
        RouterLoss(),
        Rope(),
        *_NO_WINDOWS,
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *NORMS, *GATED_MLP, *expert_rows()),
    _WINDOWS,
)

FAMILIES = (QWEN_2_MOE, QWEN_3_MOE)
