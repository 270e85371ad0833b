"""DeepSeek-V2: latent attention, and experts chosen by a softmax, in the best groups or in all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.config import ImportedValue
from ml.interop.common import EMBEDDINGS_AND_HEAD, GATED_MLP, NORMS, mlp_bias, rms_norm, sizes
from ml.interop.errors import InteropError
from ml.interop.experts import SHARED_EXPERTS, expert_rows, mixture, shared_experts
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Field, Fixed, Row, Set, View, key_of
from ml.interop.latent_attention import LATENT_ATTENTION, latent_attention
from ml.interop.rotary import Rope
from ml.interop.sparse_blocks import dense_first
from ml.layers import LatentAttention, SoftmaxRouter

_GREEDY, _LIMITED = "greedy", "group_limited_greedy"


@dataclass(frozen=True)
class Groups(Row):
    """The groups of experts, which only the method "group_limited_greedy" has."""

    scope: str

    names = ("topk_method", "n_group", "topk_group")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        method = fields.get("topk_method", _GREEDY)
        if method not in (_GREEDY, _LIMITED):
            raise InteropError(f"config.json#topk_method is {method!r}, and there is only {_GREEDY}, {_LIMITED}")
        for name, parameter in {"n_group": "num_groups", "topk_group": "groups_per_token"}.items():
            key = key_of(SoftmaxRouter, parameter, self.scope)
            fields.read.add(name)
            if method == _LIMITED:
                yield fields.value(key, fields.number(name), name)
            else:
                fields.idle.add(name)
                yield fields.value(key, 1, "topk_method")

    def exported(self, view: View) -> dict[str, Any]:
        router = view.first(SoftmaxRouter)
        if router is None or router.num_groups == router.groups_per_token:
            return {"topk_method": _GREEDY}
        return {"topk_method": _LIMITED, "n_group": router.num_groups, "topk_group": router.groups_per_token}


def _sparse(scope: str) -> tuple[Row, ...]:
    return (
        *mixture("n_routed_experts", experts_per_token=..., experts=64, scope=scope),
        *shared_experts(scope, absent_width=1407, count=2),
        Field("routed_scaling_factor", SoftmaxRouter, "scale", default=1.0, scope=scope),
        Groups(scope),
        Set(SoftmaxRouter, "normalize", False, scope),
        Set(SoftmaxRouter, "auxiliary_loss", 0.0, scope),
    )


DEEPSEEK_V2 = Family(
    "DeepSeek-V2, V2.5",
    {"deepseek_v2": "DeepseekV2ForCausalLM"},
    (
        *sizes(),
        dense_first(_sparse, 0),
        *latent_attention(),
        *rms_norm(),
        mlp_bias(),
        Rope(mixer=LatentAttention, interleaved=True),
        Fixed("mlp_bias", False),
        Fixed("norm_topk_prob", False),
        Fixed("scoring_func", "softmax"),
        Fixed("moe_layer_freq", 1),
    ),
    (*EMBEDDINGS_AND_HEAD, *NORMS, *GATED_MLP, *expert_rows(), *SHARED_EXPERTS, *LATENT_ATTENTION),
    frozenset(
        (
            "aux_loss_alpha",
            "ep_size",
            "head_dim",
            "output_router_logits",
            "qk_head_dim",
            "router_aux_loss_coef",
            "seq_aux",
        )
    ),
    has_code=True,
)

FAMILIES = (DEEPSEEK_V2,)
