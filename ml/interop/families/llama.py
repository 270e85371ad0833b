"""Llama 1 to 3 and the families with the same blocks: SmolLM, Yi, Seed-OSS, Helium."""

from ml.interop.common import (
    LLAMA_TENSORS,
    QUERY_KEY_VALUE,
    attention,
    gated_mlp,
    repeated,
    rms_norm,
    sizes,
)
from ml.interop.family import Family
from ml.interop.fields import Bias
from ml.interop.rotary import Rope
from ml.layers import Attention, GatedMLP, Linear

_MLP = ("gate", "up", "down")

LLAMA = Family(
    "Llama 1 to 3, SmolLM, Yi",
    {"llama": "LlamaForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        Bias((*QUERY_KEY_VALUE, "output"), Linear, Attention, "attention_bias", False),
        *rms_norm(),
        *gated_mlp(),
        Bias(_MLP, Linear, GatedMLP, "mlp_bias", False),
        Rope(),
    ),
    LLAMA_TENSORS,
)

FAMILIES = (LLAMA,)
