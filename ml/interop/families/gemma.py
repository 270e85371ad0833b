"""Gemma 1 to 3, text: zero-centered norms, scaled embeddings, and from Gemma 2 on four norms and windows."""

import math

from ml.blocks import DecoderBlock
from ml.interop.common import (
    ACTIVATIONS,
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    LLAMA_TENSORS,
    QUERY_KEY_NORM,
    attention,
    attention_bias,
    gated_mlp,
    inverse_square,
    mlp_bias,
    query_key_norm,
    repeated,
    rms_norm,
    sizes,
    width,
)
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Derived, Field, Fixed, Part, Row, Set
from ml.interop.kinds import FULL, SHORT, SLIDING, Kinds, attention_kind, layer_types, written_attention_kinds
from ml.interop.rotary import Rope
from ml.interop.tensors import linear_rows
from ml.layers import Attention, Embeddings, GatedMLP, LanguageModelHead, RMSNorm

_TANH = {**ACTIVATIONS, "gelu": ACTIVATIONS["gelu_pytorch_tanh"]}
_SCALE = Derived(Embeddings, "scale", lambda fields: math.sqrt(fields.number("hidden_size")), "hidden_size")
_FOUR_NORMS = linear_rows(
    {
        f"model.layers.{{i}}.{stored}": f"{{block}}.{ours}"
        for stored, ours in {
            "input_layernorm": "mixer_norm",
            "post_attention_layernorm": "mixer_output_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_output_norm",
        }.items()
    },
    ("weight",),
)
_FIELDS = ("layer_types", "num_hidden_layers", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern")


def _windows(period: int | None, *ropes: Rope) -> Kinds:
    """The blocks with a window and those without.

    Args:
        period: Every so many blocks one has no window; None is `sliding_window_pattern`, 6 where it is absent.
        ropes: The rotary embeddings of blocks with and without a window; none where one is for all.
    """

    def read(fields: ConfigFields) -> list[str]:
        other = fields.get("sliding_window_pattern", fields.get("_sliding_window_pattern", 6))
        fields.idle |= (
            {"_sliding_window_pattern", "sliding_window_pattern"} if fields.get("layer_types", None) else set()
        )
        found = layer_types(fields, lambda index: SLIDING if (index + 1) % (period or other) else FULL)
        return [SHORT.get(kind, kind) for kind in found]

    def rows(kind: str, scope: str) -> tuple[Row, ...]:
        window = Field("sliding_window", Attention, "window_size", default=4096, scope=scope)
        rope = [one.at(scope) for one in ropes if one.inside == {short: name for name, short in SHORT.items()}[kind]]
        return (window if kind == "sliding" else Set(Attention, "window_size", None, scope), *rope)

    kinds = {kind: lambda scope, kind=kind: rows(kind, scope) for kind in ("sliding", "full")}
    return Kinds(_FIELDS, read, kinds, attention_kind, written_attention_kinds)


def _later(*rows: Row, kv_heads: int = 4) -> tuple[Row, ...]:
    """Rows of Gemma 2 and 3."""
    return (
        *sizes(tied=True),
        _SCALE,
        *attention(kv_heads=kv_heads, head_dim=256),
        attention_bias(),
        Field(
            "query_pre_attn_scalar",
            Attention,
            "softmax_scale",
            default=256,
            to=lambda size: size**-0.5,
            back=inverse_square,
        ),
        *rms_norm(zero_centered=True),
        Set(DecoderBlock, "mixer_output_norm", RMSNorm),
        Set(DecoderBlock, "mlp_output_norm", RMSNorm),
        *gated_mlp("hidden_activation", "gelu_pytorch_tanh"),
        mlp_bias(),
        Fixed("use_bidirectional_attention", None, equal=(False,)),
        *rows,
    )


GEMMA_1 = Family(
    "Gemma 1",
    {"gemma": "GemmaForCausalLM"},
    (
        *sizes(tied=True),
        _SCALE,
        *repeated(),
        *attention(kv_heads=16, head_dim=256),
        attention_bias(),
        *rms_norm(zero_centered=True),
        Set(DecoderBlock, "mlp", GatedMLP),
        width(),
        Part("hidden_act", GatedMLP, "activation", _TANH, "gelu_pytorch_tanh"),
        Fixed("hidden_activation", None, equal=("gelu_pytorch_tanh",)),
        mlp_bias(),
        Rope(),
        Fixed("use_bidirectional_attention", None, equal=(False,)),
    ),
    LLAMA_TENSORS,
)
GEMMA_2 = Family(
    "Gemma 2",
    {"gemma2": "Gemma2ForCausalLM"},
    _later(
        _windows(2),
        Field("attn_logit_softcapping", Attention, "soft_cap", default=50.0),
        Field("final_logit_softcapping", LanguageModelHead, "logit_soft_cap", default=30.0),
        Rope(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *_FOUR_NORMS),
    frozenset(("cache_implementation", "hidden_act")),
)
GEMMA_3 = Family(
    "Gemma 3, text",
    {"gemma3_text": "Gemma3ForCausalLM"},
    _later(
        _windows(None, Rope(1e6, inside=FULL), Rope(inside=SLIDING, theta_field="rope_local_base_freq", scaled=False)),
        Field("attn_logit_softcapping", Attention, "soft_cap", default=None),
        Field("final_logit_softcapping", LanguageModelHead, "logit_soft_cap", default=None),
        *query_key_norm(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *GATED_MLP, *_FOUR_NORMS),
    frozenset(("cache_implementation",)),
)

FAMILIES = (GEMMA_1, GEMMA_2, GEMMA_3)
