"""Gemma 1: zero-centered norms and scaled embeddings."""

import math

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ACTIVATIONS,
    LLAMA_TENSORS,
    attention,
    attention_bias,
    mlp_bias,
    repeated,
    rms_norm,
    sizes,
    width,
)
from ml.interop.family import Family
from ml.interop.fields import Derived, Fixed, Part, Set
from ml.interop.rotary import Rope
from ml.layers import Embeddings, GatedMLP

_TANH = {**ACTIVATIONS, "gelu": ACTIVATIONS["gelu_pytorch_tanh"]}
EMBEDDING_SCALE = Derived(Embeddings, "scale", lambda fields: math.sqrt(fields.number("hidden_size")), "hidden_size")

GEMMA_1 = Family(
    "Gemma 1",
    {"gemma": "GemmaForCausalLM"},
    (
        *sizes(tied=True),
        EMBEDDING_SCALE,
        *repeated(),
        *attention(kv_heads=16, head_dim=256),
        attention_bias(),
        *rms_norm(zero_centered=True),
        Set(DecoderBlock, "mlp", GatedMLP),
        width(),
        Part("hidden_act", GatedMLP, "activation", _TANH, "gelu_pytorch_tanh"),
        Fixed("hidden_activation", None, equal=("gelu_pytorch_tanh",)),
        mlp_bias(),
        Rope(),
        Fixed("use_bidirectional_attention", None, equal=(False,)),
    ),
    LLAMA_TENSORS,
)

FAMILIES = (GEMMA_1,)
