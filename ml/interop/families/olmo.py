"""OLMo 2, 3 and OLMoE: norms of all query and key heads together; OLMo 2 and 3 normalize the output of branches."""

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
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
from ml.interop.fields import ConfigFields, Field, Fixed, Row, Set
from ml.interop.kinds import FULL, SHORT, SLIDING, Kinds, attention_kind, layer_types, written_attention_kinds
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows
from ml.layers import Attention, NoNorm, RMSNorm, SoftmaxRouter

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


def _windows() -> Kinds:
    """The blocks of OLMo 3 with a window and those without, of which `rope_scaling` is about the latter."""

    def read(fields: ConfigFields) -> list[str]:
        types = layer_types(fields, lambda index: SLIDING if (index + 1) % 4 else FULL)
        return [SHORT.get(name, name) for name in types]

    return Kinds(
        ("layer_types", "num_hidden_layers", "sliding_window"),
        read,
        {
            "sliding": lambda scope: (
                Field("sliding_window", Attention, "window_size", default=4096, scope=scope),
                Rope(5e5, inside=SLIDING, scaled=False, scope=scope),
            ),
            "full": lambda scope: (
                Set(Attention, "window_size", None, scope),
                Rope(5e5, inside=FULL, scope=scope),
            ),
        },
        attention_kind,
        written_attention_kinds,
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
OLMO_3 = Family(
    "OLMo 3",
    {"olmo3": "Olmo3ForCausalLM"},
    (
        *sizes(),
        _windows(),
        *attention(),
        attention_bias(),
        *query_key_norm(),
        *rms_norm(1e-5),
        *normalized_branches(),
        Set(Attention, "norm_over", "all_heads"),
        *gated_mlp(),
        mlp_bias(),
    ),
    OLMO_2.tensors,
)
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

FAMILIES = (OLMO_2, OLMO_3, OLMOE)
