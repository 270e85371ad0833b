"""Qwen3-Next: gated delta nets and gated attention, with experts and a shared one in most blocks."""

from collections.abc import Sequence
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
from ml.interop.families.qwen_moe import SHARED_EXPERT, sparse_blocks, with_shared
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Fixed, Row, Set
from ml.interop.kinds import FULL, Kinds, layer_types
from ml.interop.rotary import Rope
from ml.interop.tensors import ByHead, row
from ml.layers import Attention, CausalConvolution, GatedDeltaNet, GatedRMSNorm, Linear
from ml.layers.moe import MixtureOfExperts

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
    mixer = "full" if isinstance(block.mixer, Attention) else "linear"
    return f"{mixer}_{'sparse' if isinstance(block.mlp, MixtureOfExperts) else 'dense'}"


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    long = {short: name for name, short in _TYPES.items()}
    return {
        "num_hidden_layers": len(kinds),
        "layer_types": [long[kind.partition("_")[0]] for kind in kinds],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, kind in enumerate(kinds) if kind.endswith("_dense")],
    }


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


def _parts(stored: str, *names: str, by: str, needs: str):
    return row(stored, *(f"{{block}}.mixer.{name}.weight" for name in names), layout=ByHead(by), needs=needs)


QWEN_3_NEXT = Family(
    "Qwen3-Next",
    {"qwen3_next": "Qwen3NextForCausalLM"},
    (
        *sizes(),
        Kinds(
            ("num_hidden_layers", "layer_types", "decoder_sparse_step", "mlp_only_layers"),
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
        *(
            row(f"{_FULL}.{stored}_proj.weight", f"{{block}}.mixer.{ours}.weight", needs=_IN_FULL)
            for stored, ours in {"k": "key", "v": "value", "o": "output"}.items()
        ),
        _parts(f"{_LINEAR}.in_proj_qkvz.weight", "query", "key", "value", "gate", by=_HEADS, needs=_IN_LINEAR),
        _parts(f"{_LINEAR}.in_proj_ba.weight", "beta", "decay", by=_HEADS, needs=_IN_LINEAR),
        *(
            row(f"{_LINEAR}.{stored}", f"{{block}}.mixer.{ours}", needs=_IN_LINEAR)
            for stored, ours in {
                "conv1d.weight": "convolution.weight",
                "A_log": "A_log",
                "dt_bias": "dt_bias",
                "norm.weight": "norm.weight",
                "out_proj.weight": "output.weight",
            }.items()
        ),
    ),
)

FAMILIES = (QWEN_3_NEXT,)
