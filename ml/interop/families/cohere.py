"""Cohere Command R and Aya: attention and MLP in parallel over one LayerNorm without bias, scaled logits."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    attention,
    attention_bias,
    gated_mlp,
    layer_norm,
    mlp_bias,
    repeated,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Field, Fixed, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import row
from ml.layers import LanguageModelHead

COHERE = Family(
    "Cohere Command R, Aya",
    {"cohere": "CohereForCausalLM"},
    (
        *sizes(tied=True),
        *repeated(),
        *attention(),
        attention_bias(),
        Set(DecoderBlock, "parallel", True),
        Set(DecoderBlock, "shared_norm", True),
        *layer_norm(bias=False),
        *gated_mlp(),
        mlp_bias(),
        Field("logit_scale", LanguageModelHead, "logit_scale", default=0.0625),
        Fixed("use_qk_norm", False),
        Rope(5e5, interleaved=True),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *GATED_MLP,
        row("model.layers.{i}.input_layernorm.weight", "{block}.mixer_norm.weight"),
    ),
)

FAMILIES = (COHERE,)
