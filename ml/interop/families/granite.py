"""Granite: Llama with factors of embeddings, scores, branches and logits."""

from ml.blocks import DecoderBlock
from ml.interop.common import LLAMA_TENSORS, attention, attention_bias, gated_mlp, mlp_bias, repeated, rms_norm, sizes
from ml.interop.family import Family
from ml.interop.fields import Field, Row
from ml.interop.rotary import Rope
from ml.layers import Attention, Embeddings, LanguageModelHead

MULTIPLIERS: tuple[Row, ...] = (
    Field("embedding_multiplier", Embeddings, "scale", default=1.0),
    Field("attention_multiplier", Attention, "softmax_scale", default=1.0, to=lambda scale: scale * 1.0),
    Field("residual_multiplier", DecoderBlock, "residual_scale", default=1.0),
    Field(
        "logits_scaling",
        LanguageModelHead,
        "logit_scale",
        default=1.0,
        to=lambda divisor: 1.0 / divisor,
        back=lambda factor: 1.0 / factor,
    ),
)
GRANITE = Family(
    "Granite",
    {"granite": "GraniteForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
        Rope(),
        *MULTIPLIERS,
    ),
    LLAMA_TENSORS,
)

FAMILIES = (GRANITE,)
