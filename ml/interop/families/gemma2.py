"""Gemma 2: Gemma with norms of the output of each branch, soft caps, and windows in every other block."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    attention,
    attention_bias,
    gated_mlp,
    inverse_square,
    mlp_bias,
    rms_norm,
    sizes,
)
from ml.interop.families.gemma import EMBEDDING_SCALE
from ml.interop.family import Family
from ml.interop.fields import Field, Fixed, Row, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows
from ml.interop.windows import windows
from ml.layers import Attention, LanguageModelHead, RMSNorm

FOUR_NORMS = linear_rows(
    {
        f"model.layers.{{i}}.{stored}": f"{{block}}.{ours}"
        for stored, ours in {
            "input_layernorm": "mixer_norm",
            "post_attention_layernorm": "mixer_output_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_output_norm",
        }.items()
    },
    ("weight",),
)


def later_gemma(*rows: Row, kv_heads: int = 4) -> tuple[Row, ...]:
    """Rows of Gemma 2 and 3."""
    return (
        *sizes(tied=True),
        EMBEDDING_SCALE,
        *attention(kv_heads=kv_heads, head_dim=256),
        attention_bias(),
        Field(
            "query_pre_attn_scalar",
            Attention,
            "softmax_scale",
            default=256,
            to=lambda size: size**-0.5,
            back=inverse_square,
        ),
        *rms_norm(zero_centered=True),
        Set(DecoderBlock, "mixer_output_norm", RMSNorm),
        Set(DecoderBlock, "mlp_output_norm", RMSNorm),
        *gated_mlp("hidden_activation", "gelu_pytorch_tanh"),
        mlp_bias(),
        Fixed("use_bidirectional_attention", None, equal=(False,)),
        *rows,
    )


GEMMA_2 = Family(
    "Gemma 2",
    {"gemma2": "Gemma2ForCausalLM"},
    later_gemma(
        windows(2),
        Field("attn_logit_softcapping", Attention, "soft_cap", default=50.0),
        Field("final_logit_softcapping", LanguageModelHead, "logit_soft_cap", default=30.0),
        Rope(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *FOUR_NORMS),
    frozenset(("cache_implementation", "hidden_act", "sliding_window_pattern")),
)

FAMILIES = (GEMMA_2,)
