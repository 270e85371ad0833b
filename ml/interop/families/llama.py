"""Llama 1 to 3 and the families with the same blocks: SmolLM, Yi, Seed-OSS, Arcee, Helium."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    LLAMA_TENSORS,
    QUERY_KEY_VALUE,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    plain_mlp,
    repeated,
    rms_norm,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Bias, Field
from ml.interop.rotary import Rope
from ml.layers import Attention, Linear

LLAMA = Family(
    "Llama 1 to 3, SmolLM, Yi",
    {"llama": "LlamaForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
        Rope(),
    ),
    LLAMA_TENSORS,
)

SEED_OSS = Family(
    "Seed-OSS",
    {"seed_oss": "SeedOssForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(kv_heads=8, head_dim=128, dropout=0.1),
        Bias(QUERY_KEY_VALUE, Linear, Attention, "attention_bias", True),
        Bias(("output",), Linear, Attention, "attention_out_bias", False),
        Field("residual_dropout", DecoderBlock, "dropout", default=0.1),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
        Rope(),
    ),
    LLAMA_TENSORS,
)
ARCEE = Family(
    "Arcee",
    {"arcee": "ArceeForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(),
        *rms_norm(1e-5),
        *plain_mlp(default="relu2", bias="mlp_bias", has_bias=False),
        Rope(),
    ),
    LLAMA_TENSORS,
)
HELIUM = Family(
    "Helium",
    {"helium": "HeliumForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(kv_heads=20, head_dim=128),
        Bias(QUERY_KEY_VALUE, Linear, Attention, "attention_bias", False),
        Bias(("output",), Linear, Attention, default=False),
        *rms_norm(1e-8),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
        Rope(1e5, interleaved=True),
    ),
    LLAMA_TENSORS,
)

FAMILIES = (LLAMA, SEED_OSS, ARCEE, HELIUM)
