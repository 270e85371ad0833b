"""Bamba: Mamba-2, with attention in a few blocks."""

from collections.abc import Sequence
from typing import Any

from ml.interop.common import attention, attention_bias, gated_mlp, mlp_bias, rms_norm, sizes
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Field, Row
from ml.interop.hybrids import indices_of_blocks, mixer_of
from ml.interop.kinds import Kinds
from ml.interop.mixers import attention_tensors, mamba_2, mamba_2_tensors
from ml.interop.rotary import Rope
from ml.interop.tensors import TensorRow, linear_rows, row
from ml.layers import LanguageModelHead

BLOCKS: tuple[TensorRow, ...] = (
    row("model.embed_tokens.weight", "embeddings.token.weight"),
    row("model.final_layernorm.weight", "head.norm.weight"),
    row("lm_head.weight", "head.weight"),
    row("model.layers.{i}.input_layernorm.weight", "{block}.mixer_norm.weight"),
    row("model.layers.{i}.pre_ff_layernorm.weight", "{block}.mlp_norm.weight"),
    *linear_rows(
        {f"model.layers.{{i}}.feed_forward.{name}_proj": f"{{block}}.mlp.{name}" for name in ("gate", "up", "down")}
    ),
)


def _kinds(fields: ConfigFields) -> list[str]:
    indices = indices_of_blocks(fields, "attn_layer_indices") or []
    return ["attention" if index in indices else "mamba" for index in range(fields.number("num_hidden_layers"))]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    indices = [index for index, kind in enumerate(kinds) if kind == "attention"]
    return {"num_hidden_layers": len(kinds), "attn_layer_indices": indices}


def _attention(scope: str) -> tuple[Row, ...]:
    return (*attention(kv_heads=8, scope=scope), attention_bias(), Rope(fraction=0.5, scope=scope))


BAMBA = Family(
    "Bamba",
    {"bamba": "BambaForCausalLM"},
    (
        *sizes(),
        Kinds(
            ("num_hidden_layers", "attn_layer_indices"),
            _kinds,
            {"mamba": mamba_2, "attention": _attention},
            mixer_of,
            _written,
            "attn_layer_indices",
        ),
        *rms_norm(1e-5),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
        Field("z_loss_coefficient", LanguageModelHead, "z_loss", default=0.0),
    ),
    (*BLOCKS, *mamba_2_tensors("model.layers.{i}.mamba"), *attention_tensors("model.layers.{i}.self_attn")),
    frozenset(("num_logits_to_keep",)),
)

FAMILIES = (BAMBA,)
