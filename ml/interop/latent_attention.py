"""Rows of multi-head latent attention, as DeepSeek names its fields and tensors."""

from ml.blocks import DecoderBlock
from ml.interop.fields import Bias, Echo, Field, Row, Set
from ml.interop.tensors import ByHead, Concatenated, TensorRow, linear_rows, row
from ml.layers import LatentAttention, Linear, RMSNorm

_STORED = "model.layers.{i}.self_attn"
_BIASED = ("output", "query_down", "key_value_down", "key_rotary")
_UNBIASED = ("query", "query_up", "key_up", "value_up")


def latent_attention(scope: str = "", query_rank: int | None = 1536) -> tuple[Row, ...]:
    """Ranks, numbers and sizes of heads, dropout and biases.

    Args:
        scope: The scope of the bindings.
        query_rank: The value of an absent `q_lora_rank`.
    """
    return (
        Set(DecoderBlock, "mixer", LatentAttention, scope),
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
            default=query_rank,
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
        Bias(_BIASED, Linear, LatentAttention, "attention_bias", False),
        Bias(_UNBIASED, Linear, LatentAttention, default=False),
        Set(RMSNorm, "epsilon", 1e-6, "query_norm"),
        Set(RMSNorm, "epsilon", 1e-6, "key_value_norm"),
    )


LATENT_ATTENTION: tuple[TensorRow, ...] = (
    *linear_rows(
        {
            f"{_STORED}.q_proj": "{block}.mixer.query",
            f"{_STORED}.q_a_proj": "{block}.mixer.query_down",
            f"{_STORED}.q_a_layernorm": "{block}.mixer.query_norm",
            f"{_STORED}.q_b_proj": "{block}.mixer.query_up",
            f"{_STORED}.kv_a_layernorm": "{block}.mixer.key_value_norm",
            f"{_STORED}.o_proj": "{block}.mixer.output",
        }
    ),
    *(
        row(
            f"{_STORED}.kv_a_proj_with_mqa.{kind}",
            f"{{block}}.mixer.key_value_down.{kind}",
            f"{{block}}.mixer.key_rotary.{kind}",
            layout=Concatenated(),
        )
        for kind in ("weight", "bias")
    ),
    row(
        f"{_STORED}.kv_b_proj.weight",
        "{block}.mixer.key_up.weight",
        "{block}.mixer.value_up.weight",
        layout=ByHead("num_attention_heads"),
    ),
)
