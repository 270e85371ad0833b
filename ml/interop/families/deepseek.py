"""DeepSeek-V3 and R1: latent attention, and experts chosen by sigmoids with a correction bias."""

from collections.abc import Sequence
from typing import Any

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ACTIVATIONS,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    NORMS,
    gated_mlp,
    mlp_bias,
    rms_norm,
    sizes,
)
from ml.interop.experts import expert_rows, sigmoid_mixture
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Derived, Echo, Field, Fixed, Part, Row, Set, View
from ml.interop.kinds import Kinds
from ml.interop.rotary import Rope
from ml.interop.tensors import ByHead, Concatenated, linear_rows, row
from ml.layers import GatedMLP, LatentAttention, Linear, RMSNorm, SigmoidRouter
from ml.layers.moe import MixtureOfExperts

_ATTENTION = "model.layers.{i}.self_attn"
_LINEAR = ("query", "query_down", "query_up", "key_value_down", "key_rotary", "key_up", "value_up", "output")


def _shared_width(fields: ConfigFields) -> int:
    return fields.number("moe_intermediate_size") * fields.number("n_shared_experts", 1)


def _width(view: View) -> int | None:
    mlp = view.first(GatedMLP, "experts")
    return None if mlp is None else mlp.gate.out_features


def _num_shared(view: View) -> int | None:
    shared, width = view.first(GatedMLP, "shared_expert"), _width(view)
    return None if shared is None or width is None else shared.gate.out_features // width


def _kinds(fields: ConfigFields) -> list[str]:
    count = fields.number("num_hidden_layers")
    first = fields.get("first_k_dense_replace", 3)
    return ["dense" if index < first else "sparse" for index in range(count)]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    first = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    return {"num_hidden_layers": len(kinds), "first_k_dense_replace": first}


def _sparse(scope: str) -> tuple[Row, ...]:
    inside = "/".join(filter(None, (scope, "experts")))
    shared = "/".join(filter(None, (scope, "shared_expert")))
    return (
        *sigmoid_mixture("n_routed_experts", count=256, chosen=8, scope=scope),
        Field("moe_intermediate_size", GatedMLP, "intermediate_size", scope=inside, read=_width),
        Derived(GatedMLP, "intermediate_size", _shared_width, "n_shared_experts", shared),
        Field(
            "n_shared_experts",
            MixtureOfExperts,
            "shared_expert",
            default=1,
            scope=scope,
            to=lambda count: GatedMLP,
            read=_num_shared,
        ),
        Field("routed_scaling_factor", SigmoidRouter, "scale", default=2.5, scope=scope),
        Field("n_group", SigmoidRouter, "num_groups", default=8, scope=scope),
        Field("topk_group", SigmoidRouter, "groups_per_token", default=4, scope=scope),
        Field("norm_topk_prob", SigmoidRouter, "normalize", default=True, scope=scope),
        Part("hidden_act", GatedMLP, "activation", ACTIVATIONS, "silu"),
    )


DEEPSEEK_V3 = Family(
    "DeepSeek-V3, R1",
    {"deepseek_v3": "DeepseekV3ForCausalLM"},
    (
        *sizes(),
        Kinds(
            ("num_hidden_layers", "first_k_dense_replace"),
            _kinds,
            {"dense": lambda scope: gated_mlp(scope=scope), "sparse": _sparse},
            lambda block: "sparse" if isinstance(block.mlp, MixtureOfExperts) else "dense",
            _written,
            "first_k_dense_replace",
        ),
        Set(DecoderBlock, "mixer", LatentAttention),
        Field("num_attention_heads", LatentAttention, "num_heads"),
        Echo(
            "num_key_value_heads",
            "num_attention_heads",
            lambda view: getattr(view.first(LatentAttention), "num_heads", None),
        ),
        Field(
            "q_lora_rank",
            LatentAttention,
            "query_rank",
            default=1536,
            read=lambda view: getattr(view.first(LatentAttention).query_down, "out_features", None),
        ),
        Field(
            "kv_lora_rank",
            LatentAttention,
            "key_value_rank",
            default=512,
            read=lambda view: view.first(LatentAttention).key_value_down.out_features,
        ),
        Field("qk_rope_head_dim", LatentAttention, "rotary_size", default=64),
        Field("qk_nope_head_dim", LatentAttention, "head_size", default=128),
        Field("v_head_dim", LatentAttention, "value_head_size", default=128),
        Field("attention_dropout", LatentAttention, "dropout", default=0.0),
        Bias(_LINEAR, Linear, LatentAttention, default=False),
        *rms_norm(),
        Set(RMSNorm, "epsilon", 1e-6, "query_norm"),
        Set(RMSNorm, "epsilon", 1e-6, "key_value_norm"),
        mlp_bias(),
        Rope(mixer=LatentAttention, interleave_field="rope_interleave", interleaved=True),
        Fixed("attention_bias", False),
        Fixed("scoring_func", "sigmoid"),
        Fixed("topk_method", "noaux_tc"),
        Fixed("moe_layer_freq", 1),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *NORMS,
        *GATED_MLP,
        *expert_rows(),
        row("model.layers.{i}.mlp.gate.e_score_correction_bias", "{block}.mlp.router.balance_bias"),
        *linear_rows(
            {
                f"model.layers.{{i}}.mlp.shared_experts.{name}_proj": f"{{block}}.mlp.shared_expert.{name}"
                for name in ("gate", "up", "down")
            }
            | {
                f"{_ATTENTION}.q_proj": "{block}.mixer.query",
                f"{_ATTENTION}.q_a_proj": "{block}.mixer.query_down",
                f"{_ATTENTION}.q_a_layernorm": "{block}.mixer.query_norm",
                f"{_ATTENTION}.q_b_proj": "{block}.mixer.query_up",
                f"{_ATTENTION}.kv_a_layernorm": "{block}.mixer.key_value_norm",
                f"{_ATTENTION}.o_proj": "{block}.mixer.output",
            },
            ("weight",),
        ),
        row(
            f"{_ATTENTION}.kv_a_proj_with_mqa.weight",
            "{block}.mixer.key_value_down.weight",
            "{block}.mixer.key_rotary.weight",
            layout=Concatenated(),
        ),
        row(
            f"{_ATTENTION}.kv_b_proj.weight",
            "{block}.mixer.key_up.weight",
            "{block}.mixer.value_up.weight",
            layout=ByHead("num_attention_heads"),
        ),
    ),
    frozenset(
        (
            "aux_loss_alpha", "ep_size", "head_dim", "n_head", "num_mtp_layers",
            "num_nextn_predict_layers", "output_router_logits", "qk_head_dim", "router_aux_loss_coef", "seq_aux",
        )
    ),
)  # fmt: skip

FAMILIES = (DEEPSEEK_V3,)
