"""Qwen3-Next: gated delta nets and gated attention, with experts and a shared one in most blocks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ml.blocks import DecoderBlock
from ml.interop.common import (
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    NORMS,
    QUERY_KEY_NORM,
    attention,
    gated_mlp,
    query_key_norm,
    rms_norm,
    sizes,
)
from ml.interop.errors import InteropError
from ml.interop.experts import RouterLoss, expert_rows
from ml.interop.families.qwen2_moe import SHARED_EXPERT, with_shared
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Fixed, Row, Set
from ml.interop.kinds import FULL, Kinds, layer_types
from ml.interop.rotary import Rope
from ml.interop.sparse_blocks import SPARSE_FIELDS, mlp_kind, sparse_blocks, written_sparse_blocks
from ml.interop.tensors import ByHead, TensorRow, linear_rows, row
from ml.layers import Attention, CausalConvolution, GatedDeltaNet, GatedRMSNorm, Linear

_TYPES = {"linear_attention": "linear", FULL: "full"}
_BIASES = ("query", "key", "value", "gate", "beta", "output", "up", "down")
_HEADS = "linear_num_key_heads"
_FULL, _LINEAR = "model.layers.{i}.self_attn", "model.layers.{i}.linear_attn"
_IN_FULL, _IN_LINEAR = "{block}.mixer.query_norm.weight", "{block}.mixer.A_log"


def _kinds(fields: ConfigFields) -> list[str]:
    types = layer_types(fields, lambda index: "linear_attention" if (index + 1) % 4 else FULL)
    if any(name not in _TYPES for name in types):
        raise InteropError(f"config.json#layer_types must have {', '.join(_TYPES)}, not {', '.join(types)}")
    return [f"{_TYPES[name]}_{mlp}" for name, mlp in zip(types, sparse_blocks(fields), strict=True)]


def _which(block: Any) -> str:
    return f"{'full' if isinstance(block.mixer, Attention) else 'linear'}_{mlp_kind(block)}"


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    long = {short: name for name, short in _TYPES.items()}
    return {**written_sparse_blocks(kinds), "layer_types": [long[kind.partition("_")[0]] for kind in kinds]}


def _delta_net(scope: str) -> tuple[Row, ...]:
    return (
        Set(DecoderBlock, "mixer", GatedDeltaNet, scope),
        Field(_HEADS, GatedDeltaNet, "num_heads", default=16),
        Field("linear_num_value_heads", GatedDeltaNet, "num_value_heads", default=32),
        Field("linear_key_head_dim", GatedDeltaNet, "key_head_size", default=128),
        Field("linear_value_head_dim", GatedDeltaNet, "value_head_size", default=128),
        Field("linear_conv_kernel_dim", CausalConvolution, "kernel_size", default=4),
        Field("rms_norm_eps", GatedRMSNorm, "epsilon", default=1e-6),
    )


def _attention(scope: str) -> tuple[Row, ...]:
    rows = attention(kv_heads=2, head_dim=256, scope=scope)
    return (*rows, Set(Attention, "gated", True), *query_key_norm(), Rope(fraction=0.25))


def _block(kind: str, scope: str) -> tuple[Row, ...]:
    mixer, _, mlp = kind.partition("_")
    rows = _attention(scope) if mixer == "full" else _delta_net(scope)
    return (*rows, *(gated_mlp(scope=scope) if mlp == "dense" else with_shared(scope, 10, 512, normalized=True)))


def _parts(stored: str, *names: str, by: str, needs: str) -> TensorRow:
    return row(stored, *(f"{{block}}.mixer.{name}.weight" for name in names), layout=ByHead(by), needs=needs)


def _same(mixer: str, needs: str, names: Mapping[str, str]) -> tuple[TensorRow, ...]:
    pairs = {f"{mixer}.{stored}": f"{{block}}.mixer.{ours}" for stored, ours in names.items()}
    return linear_rows(pairs, ("weight",), needs=needs)


QWEN_3_NEXT = Family(
    "Qwen3-Next",
    {"qwen3_next": "Qwen3NextForCausalLM"},
    (
        *sizes(),
        Kinds(
            (*SPARSE_FIELDS, "layer_types"),
            _kinds,
            {kind: partial(_block, kind) for kind in ("linear_sparse", "full_sparse", "linear_dense", "full_dense")},
            _which,
            _written,
        ),
        Bias(_BIASES, Linear, Attention, default=False),
        *rms_norm(zero_centered=True),
        RouterLoss(),
        Fixed("attention_bias", False),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *NORMS,
        *GATED_MLP,
        *expert_rows(),
        *SHARED_EXPERT,
        *QUERY_KEY_NORM,
        _parts(f"{_FULL}.q_proj.weight", "query", "gate", by="num_attention_heads", needs=_IN_FULL),
        *_same(_FULL, _IN_FULL, {"k_proj": "key", "v_proj": "value", "o_proj": "output"}),
        _parts(f"{_LINEAR}.in_proj_qkvz.weight", "query", "key", "value", "gate", by=_HEADS, needs=_IN_LINEAR),
        _parts(f"{_LINEAR}.in_proj_ba.weight", "beta", "decay", by=_HEADS, needs=_IN_LINEAR),
        *_same(_LINEAR, _IN_LINEAR, {"conv1d": "convolution", "norm": "norm", "out_proj": "output"}),
        *(row(f"{_LINEAR}.{name}", f"{{block}}.mixer.{name}", needs=_IN_LINEAR) for name in ("A_log", "dt_bias")),
    ),
)

FAMILIES = (QWEN_3_NEXT,)
