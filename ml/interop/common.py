"""Rows that many families share."""

import math
from collections.abc import Callable
from typing import Any

from ml.blocks import DecoderBlock, Repeat
from ml.interop.fields import ABSENT, Bias, ConfigFields, Field, Fixed, Part, Row, Set, View
from ml.interop.tensors import TensorRow, linear_rows, row
from ml.layers import (
    MLP,
    Attention,
    GatedMLP,
    LanguageModelHead,
    LayerNorm,
    Linear,
    RMSNorm,
    gelu,
    relu,
    relu_squared,
    sigmoid,
    silu,
    tanh,
)
from ml.models import LanguageModel

ACTIVATIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "silu": (silu, {}),
    "swish": (silu, {}),
    "gelu": (gelu, {"approximate": "none"}),
    "gelu_pytorch_tanh": (gelu, {"approximate": "tanh"}),
    "gelu_new": (gelu, {"approximate": "tanh"}),
    "gelu_fast": (gelu, {"approximate": "tanh"}),
    "relu": (relu, {}),
    "relu2": (relu_squared, {}),
    "tanh": (tanh, {}),
    "sigmoid": (sigmoid, {}),
}
QUERY_KEY_VALUE = ("query", "key", "value")


def sizes(tied: bool = False, aliases: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """Vocabulary, width, and tied embeddings.

    Args:
        tied: The value of an absent `tie_word_embeddings`.
        aliases: Other names of `tie_word_embeddings`.
    """
    return (
        Field("vocab_size", LanguageModel, "vocab_size"),
        Field("hidden_size", LanguageModel, "hidden_size"),
        Field("tie_word_embeddings", LanguageModel, "tie_word_embeddings", default=tied, aliases=aliases),
    )


def untied() -> tuple[Row, ...]:
    """Vocabulary and width of a family that transformers never ties."""
    return (
        Field("vocab_size", LanguageModel, "vocab_size"),
        Field("hidden_size", LanguageModel, "hidden_size"),
        Set(LanguageModel, "tie_word_embeddings", False),
        Fixed("tie_word_embeddings", False),
    )


def repeated(name: str = "num_hidden_layers") -> tuple[Row, ...]:
    """Equal blocks."""
    return (
        Set(LanguageModel, "decoder", Repeat),
        Set(Repeat, "block", DecoderBlock),
        Field(name, Repeat, "num_blocks", read=lambda view: len(view.blocks)),
    )


def _head_size(fields: ConfigFields) -> int:
    hidden, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    return hidden // heads


def _num_heads(fields: ConfigFields) -> int:
    return fields.number("num_attention_heads")


def attention(
    kv_heads: int | None = None, head_dim: int | None = None, dropout: float = 0.0, scope: str = ""
) -> tuple[Row, ...]:
    """Numbers and sizes of heads, and dropout.

    Args:
        kv_heads: The value of an absent `num_key_value_heads`; None is the number of heads.
        head_dim: The value of an absent `head_dim`; None divides the width by the number of heads.
        dropout: The value of an absent `attention_dropout`.
        scope: The scope of the bindings.
    """
    return (
        Set(DecoderBlock, "mixer", Attention, scope),
        Field("num_attention_heads", Attention, "num_heads"),
        Field("num_key_value_heads", Attention, "num_kv_heads", default=kv_heads, null=_num_heads),
        Field("head_dim", Attention, "head_size", default=head_dim, null=_head_size),
        Field("attention_dropout", Attention, "dropout", default=dropout),
    )


def rms_norm(epsilon: float | None = 1e-6, name: str = "rms_norm_eps", zero_centered: bool = False) -> tuple[Row, ...]:
    """Root mean square normalization everywhere."""
    return (
        Set(DecoderBlock, "normalization", RMSNorm),
        Set(LanguageModelHead, "normalization", RMSNorm),
        Set(RMSNorm, "zero_centered", zero_centered),
        Field(name, RMSNorm, "epsilon", default=epsilon),
    )


def gated_mlp(activation: str = "hidden_act", default: str = "silu", scope: str = "") -> tuple[Row, ...]:
    """A gated MLP in the blocks of a scope.

    Args:
        activation: The field of the activation.
        default: The value of an absent activation.
        scope: The scope of the bindings.
    """
    return (
        Set(DecoderBlock, "mlp", GatedMLP, scope),
        width(scope=scope),
        Part(activation, GatedMLP, "activation", ACTIVATIONS, default),
    )


INTERMEDIATE_SIZE = Field(
    "intermediate_size", MLP, "intermediate_size", read=lambda view: view.first(MLP).up.out_features
)


def plain_mlp(
    activation: str = "hidden_act",
    default: str = "gelu",
    bias: str | None = None,
    has_bias: bool = True,
    width: Field = INTERMEDIATE_SIZE,
) -> tuple[Row, ...]:
    """An MLP without a gate in every block.

    Args:
        activation: The field of the activation.
        default: The value of an absent activation.
        bias: The field of the biases; None for a family that decides.
        has_bias: The value of an absent field, or that of the family.
        width: The row of the width.
    """
    return (
        Set(DecoderBlock, "mlp", MLP),
        width,
        Part(activation, MLP, "activation", ACTIVATIONS, default),
        Bias(("up", "down"), Linear, MLP, bias, has_bias),
    )


def width(name: str = "intermediate_size", scope: str = "", default: Any = ABSENT) -> Field:
    """The width of the hidden layer of the gated MLPs in a scope.

    Args:
        name: The field.
        scope: The scope of the bindings.
        default: The value of an absent field; without it the field is required.
    """

    def read(view: View) -> int | None:
        mlp = view.first(GatedMLP, scope)
        return None if mlp is None else mlp.gate.out_features

    return Field(name, GatedMLP, "intermediate_size", default=default, read=read, scope=scope)


def layer_norm(name: str = "layer_norm_eps", epsilon: float = 1e-5, bias: bool = True) -> tuple[Row, ...]:
    """Layer normalization everywhere."""
    return (
        Set(DecoderBlock, "normalization", LayerNorm),
        Set(LanguageModelHead, "normalization", LayerNorm),
        Set(LayerNorm, "bias", bias),
        Field(name, LayerNorm, "epsilon", default=epsilon),
    )


def attention_bias(name: str | None = "attention_bias", default: bool = False) -> Bias:
    """Biases of query, key, value and output by one field, or as the family decides."""
    return Bias((*QUERY_KEY_VALUE, "output"), Linear, Attention, name, default)


def mlp_bias(name: str | None = None, default: bool = False, owner: type = GatedMLP) -> Bias:
    """Biases of a gated MLP by one field, or as the family decides."""
    return Bias(("gate", "up", "down"), Linear, owner, name, default)


def query_key_norm() -> tuple[Row, ...]:
    """RMSNorm of each query and key head."""
    return (Set(Attention, "query_norm", RMSNorm), Set(Attention, "key_norm", RMSNorm))


def inverse_square(scale: float) -> float:
    """Returns x of scale = 1 / √x, an integer where it is one within rounding."""
    exact = scale**-2
    return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-12) else exact


# The tensors of Llama, which most families name alike.
EMBEDDINGS_AND_HEAD: tuple[TensorRow, ...] = (
    row("model.embed_tokens.weight", "embeddings.token.weight"),
    row("model.norm.weight", "head.norm.weight"),
    row("lm_head.weight", "head.weight"),
)
ATTENTION = linear_rows(
    {
        f"model.layers.{{i}}.self_attn.{stored}": f"{{block}}.mixer.{ours}"
        for stored, ours in {
            "q_proj": "query",
            "k_proj": "key",
            "v_proj": "value",
            "o_proj": "output",
        }.items()
    }
)
QUERY_KEY_NORM: tuple[TensorRow, ...] = (
    row("model.layers.{i}.self_attn.q_norm.weight", "{block}.mixer.query_norm.weight"),
    row("model.layers.{i}.self_attn.k_norm.weight", "{block}.mixer.key_norm.weight"),
)
GATED_MLP = linear_rows(
    {f"model.layers.{{i}}.mlp.{name}_proj": f"{{block}}.mlp.{name}" for name in ("gate", "up", "down")}
)
NORMS: tuple[TensorRow, ...] = (
    row("model.layers.{i}.input_layernorm.weight", "{block}.mixer_norm.weight"),
    row("model.layers.{i}.post_attention_layernorm.weight", "{block}.mlp_norm.weight"),
)
LLAMA_TENSORS = (*EMBEDDINGS_AND_HEAD, *ATTENTION, *GATED_MLP, *NORMS)
