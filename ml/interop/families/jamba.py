"""Jamba: Mamba with a few blocks of attention without positions, and experts in some blocks."""

from collections.abc import Sequence
from typing import Any

from ml.interop.common import attention, attention_bias, gated_mlp, mlp_bias, rms_norm, sizes, width
from ml.interop.experts import RouterLoss, mixture
from ml.interop.families.bamba import BLOCKS
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Fixed, Row, Set, within
from ml.interop.hybrids import combined, kind_of, periodic, written_period
from ml.interop.kinds import Kinds
from ml.interop.mixers import attention_tensors, mamba, mamba_tensors
from ml.interop.tensors import linear_rows, row
from ml.layers import Attention, SoftmaxRouter

_FIELDS = (
    "num_hidden_layers", "attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset",
    "num_experts",
)  # fmt: skip
_MLP = "model.layers.{i}.feed_forward"


def _kinds(fields: ConfigFields) -> list[str]:
    count = fields.number("num_hidden_layers")
    has_attention, is_sparse = periodic(fields, "attn", 8, 4), periodic(fields, "expert", 2, 1)
    if fields.number("num_experts", 16) == 1:
        fields.idle |= {"expert_layer_period", "expert_layer_offset"}
        is_sparse = [False] * count
    pairs = zip(has_attention, is_sparse, strict=True)
    return [f"{'attention' if one else 'mamba'}_{'sparse' if other else 'dense'}" for one, other in pairs]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    sparse = [kind.endswith("_sparse") for kind in kinds]
    return {
        "num_hidden_layers": len(kinds),
        **written_period([kind.startswith("attention") for kind in kinds], "attn"),
        **written_period(sparse, "expert"),
        **({} if any(sparse) else {"num_experts": 1}),
    }


def _attention(scope: str) -> tuple[Row, ...]:
    return (*attention(kv_heads=8, scope=scope), Set(Attention, "rotary", None, scope), attention_bias(None))


def _sparse(scope: str) -> tuple[Row, ...]:
    return (
        *mixture("num_experts", "num_local_experts", experts_per_token=2, experts=16, scope=scope),
        Set(SoftmaxRouter, "normalize", False, scope),
        width(scope=within(scope, "experts")),
        RouterLoss(),
    )


JAMBA = Family(
    "Jamba",
    {"jamba": "JambaForCausalLM"},
    (
        *sizes(),
        Kinds(
            _FIELDS,
            _kinds,
            combined(
                {"mamba": mamba, "attention": _attention},
                {"dense": lambda scope: gated_mlp(scope=scope), "sparse": _sparse},
            ),
            kind_of,
            _written,
            "attn_layer_period",
        ),
        *rms_norm(),
        mlp_bias(),
        Fixed("mamba_inner_layernorms", True),
    ),
    (
        *BLOCKS,
        *attention_tensors("model.layers.{i}.self_attn"),
        *mamba_tensors("model.layers.{i}.mamba"),
        row(f"{_MLP}.router.weight", "{block}.mlp.router.weight"),
        *linear_rows(
            {
                f"{_MLP}.experts.{{e}}.{part}_proj": f"{{block}}.mlp.experts.expert_{{e}}.{part}"
                for part in ("gate", "up", "down")
            },
            ("weight",),
        ),
    ),
    frozenset(
        (
            "num_logits_to_keep", "calc_logits_for_entire_prompt", "use_mamba_kernels", "use_mambapy",
            "use_associative_scan",
        )
    ),
)  # fmt: skip

FAMILIES = (JAMBA,)
