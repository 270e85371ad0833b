"""OLMo 2: norms of all query and key heads together, and of the output of each branch."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    QUERY_KEY_NORM,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    query_key_norm,
    repeated,
    rms_norm,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Row, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows
from ml.layers import Attention, NoNorm, RMSNorm

BRANCH_NORMS = linear_rows(
    {
        "model.layers.{i}.post_attention_layernorm": "{block}.mixer_output_norm",
        "model.layers.{i}.post_feedforward_layernorm": "{block}.mlp_output_norm",
    },
    ("weight",),
)


def normalized_branches() -> tuple[Row, ...]:
    """Normalization of the output of each branch, and none of its input."""
    return (
        Set(DecoderBlock, "mixer_norm", NoNorm),
        Set(DecoderBlock, "mlp_norm", NoNorm),
        Set(DecoderBlock, "mixer_output_norm", RMSNorm),
        Set(DecoderBlock, "mlp_output_norm", RMSNorm),
    )


OLMO_2 = Family(
    "OLMo 2",
    {"olmo2": "Olmo2ForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(),
        *query_key_norm(),
        *rms_norm(1e-5),
        *normalized_branches(),
        Set(Attention, "norm_over", "all_heads"),
        *gated_mlp(),
        mlp_bias(),
        Rope(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *GATED_MLP, *BRANCH_NORMS),
)

FAMILIES = (OLMO_2,)
