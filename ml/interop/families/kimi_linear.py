"""Kimi Linear: Kimi delta attention and latent attention without positions, and the experts of DeepSeek-V3."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ml.interop.common import EMBEDDINGS_AND_HEAD, NORMS, gated_mlp, mlp_bias, rms_norm, untied
from ml.interop.delta_attention import INSIDE, MIXERS, delta_attention, delta_attention_tensors, delta_or_latent
from ml.interop.errors import InteropError
from ml.interop.experts import shared_experts, sigmoid_mixture
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Field, Fixed, Row, Set
from ml.interop.hybrids import combined
from ml.interop.kinds import Kinds
from ml.interop.latent_attention import LATENT_ATTENTION, latent_attention
from ml.interop.sparse_blocks import mlp_kind
from ml.interop.tensors import row, rows_within
from ml.layers import LatentAttention, SigmoidRouter

_DENSE, _EXPERTS = "model.layers.{i}.mlp", "model.layers.{i}.block_sparse_moe"
_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
_ROUTER = {"gate.weight": "router.weight", "gate.e_score_correction_bias": "router.balance_bias"}
_KEPT = frozenset(
    (
        "head_dim", "model_max_length", "num_nextn_predict_layers", "output_router_logits", "qk_head_dim",
        "rope_scaling", "rope_theta",
    )
)  # fmt: skip
_FIELDS = ("num_hidden_layers", "layer_types", INSIDE, "mlp_layer_types", "first_k_dense_replace")


def _kinds(fields: ConfigFields) -> list[str]:
    count, types = fields.number("num_hidden_layers"), fields.get("mlp_layer_types", None)
    first = fields.get("first_k_dense_replace", 1)
    if types is None:
        types = ["dense" if index < first else "sparse" for index in range(count)]
    else:
        fields.idle.add("first_k_dense_replace")
    if not isinstance(types, list) or len(types) != count or any(one not in ("dense", "sparse") for one in types):
        raise InteropError(f"config.json#mlp_layer_types must have {count} times dense or sparse, not {types!r}")
    return [f"{mixer}_{mlp}" for mixer, mlp in zip(delta_or_latent(fields), types, strict=True)]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    names, pairs = {kind: name for name, kind in MIXERS.items()}, [kind.split("_") for kind in kinds]
    return {
        "num_hidden_layers": len(kinds),
        "layer_types": [names[mixer] for mixer, _ in pairs],
        "mlp_layer_types": [mlp for _, mlp in pairs],
    }


def _latent(scope: str) -> tuple[Row, ...]:
    return (*latent_attention(scope, query_rank=None), Set(LatentAttention, "rotary", None, scope))


def _dense(scope: str) -> tuple[Row, ...]:
    return gated_mlp(scope=scope)


def _sparse(scope: str) -> tuple[Row, ...]:
    chosen = ("num_experts_per_token", "num_experts_per_tok")
    return (
        *sigmoid_mixture("num_experts", "num_local_experts", count=256, chosen=8, scope=scope, per_token=chosen),
        *shared_experts(scope, absent_width=1024, names=("num_shared_experts", "n_shared_experts")),
        Field("routed_scaling_factor", SigmoidRouter, "scale", default=2.446, scope=scope),
        Field("num_expert_group", SigmoidRouter, "num_groups", default=1, scope=scope, aliases=("n_group",)),
        Field("topk_group", SigmoidRouter, "groups_per_token", default=1, scope=scope),
        Field("moe_renormalize", SigmoidRouter, "normalize", default=True, scope=scope, aliases=("norm_topk_prob",)),
    )


KIMI_LINEAR = Family(
    "Kimi Linear",
    {"kimi_linear": "KimiLinearForCausalLM"},
    (
        *untied(),
        Kinds(
            _FIELDS,
            _kinds,
            combined({"delta": delta_attention, "latent": _latent}, {"dense": _dense, "sparse": _sparse}),
            lambda block: f"{'latent' if isinstance(block.mixer, LatentAttention) else 'delta'}_{mlp_kind(block)}",
            _written,
        ),
        *rms_norm(1e-5),
        mlp_bias(),
        Fixed("moe_router_activation_func", "sigmoid"),
        Fixed("mla_use_nope", True),
        Fixed("use_grouped_topk", True),
        Fixed("moe_layer_freq", 1),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *NORMS,
        *delta_attention_tensors("model.layers.{i}.self_attn"),
        *(replace(one, needs="{block}.mixer.key_value_norm.weight") for one in LATENT_ATTENTION),
        # transformers writes the other names of dense MLPs.
        *(
            row(f"{_DENSE}.{one}_proj.weight", f"{{block}}.mlp.{one}.weight", other=f"{_EXPERTS}.{one}_proj.weight")
            for one in _PARTS
        ),
        *rows_within(_EXPERTS, "{block}.mlp", _ROUTER),
        *rows_within(
            _EXPERTS,
            "{block}.mlp",
            {f"shared_experts.{one}_proj.weight": f"shared_expert.{one}.weight" for one in _PARTS},
        ),
        *rows_within(
            _EXPERTS,
            "{block}.mlp",
            {f"experts.{{e}}.{stored}.weight": f"experts.expert_{{e}}.{one}.weight" for one, stored in _PARTS.items()},
        ),
    ),
    _KEPT,
    has_code=True,
)

FAMILIES = (KIMI_LINEAR,)
