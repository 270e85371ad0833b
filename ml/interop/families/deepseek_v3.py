"""DeepSeek-V3 and R1: latent attention, and experts chosen by sigmoids with a correction bias."""

from ml.interop.common import EMBEDDINGS_AND_HEAD, GATED_MLP, NORMS, mlp_bias, rms_norm, sizes
from ml.interop.experts import SHARED_EXPERTS, expert_rows, shared_experts, sigmoid_mixture
from ml.interop.family import Family
from ml.interop.fields import Field, Fixed, Row
from ml.interop.latent_attention import LATENT_ATTENTION, latent_attention
from ml.interop.rotary import Rope
from ml.interop.sparse_blocks import dense_first
from ml.interop.tensors import row
from ml.layers import LatentAttention, SigmoidRouter


def _sparse(scope: str) -> tuple[Row, ...]:
    return (
        *sigmoid_mixture("n_routed_experts", count=256, chosen=8, scope=scope),
        *shared_experts(scope),
        Field("routed_scaling_factor", SigmoidRouter, "scale", default=2.5, scope=scope),
        Field("n_group", SigmoidRouter, "num_groups", default=8, scope=scope),
        Field("topk_group", SigmoidRouter, "groups_per_token", default=4, scope=scope),
        Field("norm_topk_prob", SigmoidRouter, "normalize", default=True, scope=scope),
    )


DEEPSEEK_V3 = Family(
    "DeepSeek-V3, R1",
    {"deepseek_v3": "DeepseekV3ForCausalLM"},
    (
        *sizes(),
        dense_first(_sparse, 3),
        *latent_attention(),
        *rms_norm(),
        mlp_bias(),
        Rope(mixer=LatentAttention, interleave_field="rope_interleave", interleaved=True),
        Fixed("scoring_func", "sigmoid"),
        Fixed("topk_method", "noaux_tc"),
        Fixed("moe_layer_freq", 1),
    ),
    (
        *EMBEDDINGS_AND_HEAD,
        *NORMS,
        *GATED_MLP,
        *expert_rows(),
        *SHARED_EXPERTS,
        *LATENT_ATTENTION,
        row("model.layers.{i}.mlp.gate.e_score_correction_bias", "{block}.mlp.router.balance_bias"),
    ),
    frozenset(
        (
            "aux_loss_alpha", "ep_size", "head_dim", "n_head", "num_mtp_layers", "output_router_logits",
            "qk_head_dim", "router_aux_loss_coef", "seq_aux",
        )
    ),
    prediction_layers="num_nextn_predict_layers",
    has_code=True,
)  # fmt: skip

FAMILIES = (DEEPSEEK_V3,)
