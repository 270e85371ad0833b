"""Nemotron: zero-centered layer norms, and MLPs of squared ReLUs."""

from ml.interop.common import (
    ATTENTION,
    GATED_MLP,
    attention,
    attention_bias,
    layer_norm,
    plain_mlp,
    repeated,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Set
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows, row
from ml.layers import LayerNorm

NEMOTRON = Family(
    "Nemotron 3, 4, Minitron",
    {"nemotron": "NemotronForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(),
        *layer_norm("norm_eps"),
        Set(LayerNorm, "zero_centered", True),
        *plain_mlp(default="relu2", bias="mlp_bias", has_bias=False),
        Rope(fraction=0.5),
    ),
    (
        row("model.embed_tokens.weight", "embeddings.token.weight"),
        row("lm_head.weight", "head.weight"),
        *ATTENTION,
        *GATED_MLP,
        *linear_rows(
            {
                "model.layers.{i}.input_layernorm": "{block}.mixer_norm",
                "model.layers.{i}.post_attention_layernorm": "{block}.mlp_norm",
                "model.norm": "head.norm",
            }
        ),
    ),
)

FAMILIES = (NEMOTRON,)
