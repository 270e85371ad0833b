"""Rows that many families share."""

import math
from collections.abc import Callable
from typing import Any

from ml.blocks import DecoderBlock, Repeat
from ml.interop.fields import Bias, ConfigFields, Field, Part, Row, Set, View
from ml.interop.rotary import Rope
from ml.interop.tensors import TensorRow, linear_rows, row
from ml.layers import (
    Attention,
    GatedMLP,
    LanguageModelHead,
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


def sizes(tied: bool = False) -> tuple[Row, ...]:
    """Vocabulary, width, and tied embeddings.

    Args:
        tied: The value of an absent `tie_word_embeddings`.
    """
    return (
        Field("vocab_size", LanguageModel, "vocab_size"),
        Field("hidden_size", LanguageModel, "hidden_size"),
        Field("tie_word_embeddings", LanguageModel, "tie_word_embeddings", default=tied),
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


def attention(
    kv_heads: bool = True,
    head_dim: bool = True,
    dropout: bool = True,
) -> tuple[Row, ...]:
    """Numbers and sizes of heads.

    Args:
        kv_heads: Whether key and value heads have a number.
        head_dim: Whether heads have a size.
        dropout: Whether attention has dropout.
    """
    rows: list[Row] = [
        Set(DecoderBlock, "mixer", Attention),
        Field("num_attention_heads", Attention, "num_heads"),
        Field(
            "num_key_value_heads",
            Attention,
            "num_kv_heads",
            default=lambda fields: fields.number("num_attention_heads"),
        ),
        Field("head_dim", Attention, "head_size", default=_head_size),
    ]
    if dropout:
        rows.append(Field("attention_dropout", Attention, "dropout", default=0.0))
    return tuple(rows)


def rms_norm(epsilon: float | None = 1e-6, name: str = "rms_norm_eps", zero_centered: bool = False) -> tuple[Row, ...]:
    """Root mean square normalization everywhere."""
    return (
        Set(DecoderBlock, "normalization", RMSNorm),
        Set(LanguageModelHead, "normalization", RMSNorm),
        Set(RMSNorm, "zero_centered", zero_centered),
        Field(name, RMSNorm, "epsilon", default=epsilon),
    )


def gated_mlp(
    activation: str = "hidden_act", size: str = "intermediate_size", default: str = "silu", scope: str = ""
) -> tuple[Row, ...]:
    """A gated MLP in every block."""
    return (
        Set(DecoderBlock, "mlp", GatedMLP),
        Field(size, GatedMLP, "intermediate_size", read=intermediate_size, scope=scope),
        Part(activation, GatedMLP, "activation", ACTIVATIONS, default),
    )


def intermediate_size(view: View) -> int | None:
    """Width of the hidden layer of the first gated MLP."""
    mlp = view.first(GatedMLP)
    return None if mlp is None else mlp.gate.out_features


def no_bias(*layers: str, owner: type = Attention) -> Bias:
    """Linear layers without a bias in the family."""
    return Bias(layers, Linear, owner, default=False)


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

__all__ = ["Rope"]
