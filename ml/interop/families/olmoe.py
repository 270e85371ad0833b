"""OLMoE: norms of all query and key heads together, and a mixture of experts."""

from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    NORMS,
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
from ml.interop.experts import RouterLoss, expert_rows, mixture
from ml.interop.family import Family
from ml.interop.fields import Field, Fixed, Set
from ml.interop.rotary import Rope
from ml.layers import Attention, SoftmaxRouter

OLMOE = Family(
    "OLMoE",
    {"olmoe": "OlmoeForCausalLM"},
    (
        *sizes(),
        *repeated(),
        *attention(),
        attention_bias(),
        *query_key_norm(),
        Set(Attention, "norm_over", "all_heads"),
        *rms_norm(1e-5),
        *gated_mlp(),
        mlp_bias(),
        *mixture("num_experts", "num_local_experts", experts_per_token=8, experts=64),
        Field("norm_topk_prob", SoftmaxRouter, "normalize", default=False),
        Fixed("clip_qkv", None),
        RouterLoss(),
        Rope(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *NORMS, *expert_rows()),
)

FAMILIES = (OLMOE,)
