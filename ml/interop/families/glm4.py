"""GLM-4: four norms, half of each head rotated in adjacent pairs, gate and up in one tensor."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    QUERY_KEY_VALUE,
    attention,
    gated_mlp,
    mlp_bias,
    repeated,
    rms_norm,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Bias, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import Concatenated, linear_rows, row
from ml.layers import Attention, Linear, RMSNorm

_LAYER = "model.layers.{i}"

GLM_4 = Family(
    "GLM-4",
    {"glm4": "Glm4ForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(kv_heads=2, head_dim=128),
        Bias(QUERY_KEY_VALUE, Linear, Attention, "attention_bias", True),
        Bias(("output",), Linear, Attention, default=False),
        *rms_norm(1.5625e-07),
        Set(DecoderBlock, "mixer_output_norm", RMSNorm),
        Set(DecoderBlock, "mlp_output_norm", RMSNorm),
        *gated_mlp(),
        mlp_bias(),
        Rope(fraction=0.5, interleaved=True),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *linear_rows(
            {
                f"{_LAYER}.input_layernorm": "{block}.mixer_norm",
                f"{_LAYER}.post_self_attn_layernorm": "{block}.mixer_output_norm",
                f"{_LAYER}.post_attention_layernorm": "{block}.mlp_norm",
                f"{_LAYER}.post_mlp_layernorm": "{block}.mlp_output_norm",
                f"{_LAYER}.mlp.down_proj": "{block}.mlp.down",
            },
            ("weight",),
        ),
        row(
            f"{_LAYER}.mlp.gate_up_proj.weight",
            "{block}.mlp.gate.weight",
            "{block}.mlp.up.weight",
            layout=Concatenated(),
        ),
    ),
)

FAMILIES = (GLM_4,)
