"""Mistral and Mixtral: Llama with a window, and with a mixture of experts."""

from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    LLAMA_TENSORS,
    NORMS,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    repeated,
    rms_norm,
    sizes,
)
from ml.interop.experts import RouterLoss, mixture
from ml.interop.family import Family
from ml.interop.fields import Field, Set
from ml.interop.rotary import Rope
from ml.interop.tensors import row
from ml.layers import Attention, SoftmaxRouter

_EXPERT = "model.layers.{i}.block_sparse_moe.experts.{e}"

MISTRAL = Family(
    "Mistral",
    {"mistral": "MistralForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(kv_heads=8),
        attention_bias(None),
        Field("sliding_window", Attention, "window_size", default=4096),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias(),
        Rope(),
    ),
    LLAMA_TENSORS,
)
MIXTRAL = Family(
    "Mixtral",
    {"mixtral": "MixtralForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(kv_heads=8),
        attention_bias(None),
        Field("sliding_window", Attention, "window_size", default=None),
        *rms_norm(1e-5),
        *gated_mlp(),
        mlp_bias(),
        *mixture("num_local_experts", experts_per_token=2),
        Set(SoftmaxRouter, "normalize", True),
        RouterLoss(),
        Rope(theta=1e6),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *ATTENTION,
        *NORMS,
        row("model.layers.{i}.block_sparse_moe.gate.weight", "{block}.mlp.router.weight"),
        row(f"{_EXPERT}.w1.weight", "{block}.mlp.experts.expert_{e}.gate.weight"),
        row(f"{_EXPERT}.w3.weight", "{block}.mlp.experts.expert_{e}.up.weight"),
        row(f"{_EXPERT}.w2.weight", "{block}.mlp.experts.expert_{e}.down.weight"),
    ),
    frozenset(("router_jitter_noise",)),
)

FAMILIES = (MISTRAL, MIXTRAL)
