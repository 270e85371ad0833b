"""LFM2: gated short convolutions and grouped-query attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.common import attention, attention_bias, mlp_bias, query_key_norm, rms_norm, sizes
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Row, Set, View, key_of, within
from ml.interop.hybrids import indices_of_blocks, mixers, written_mixers
from ml.interop.kinds import FULL, Kinds
from ml.interop.mixers import attention_tensors, convolution, joined_tensors
from ml.interop.rotary import Rope
from ml.interop.tensors import row, rows_within
from ml.layers import Attention, CausalConvolution, GatedMLP, Linear, ShortConvolutionMixer, silu

_LAYER, _IN_CONVOLUTION = "model.layers.{i}", "{block}.mixer.convolution.weight"
_KEPT = frozenset(
    (
        "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
        "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta",
        "use_pos_enc",
    )
)  # fmt: skip
_OUTSIDE = {"conv.": "convolution.", "out_proj.": "output."}
_NORMS = {"q_layernorm.weight": "query_norm.weight", "k_layernorm.weight": "key_norm.weight"}
_TYPES = {"conv": "conv", FULL: "attention"}


def _kinds(fields: ConfigFields) -> list[str]:
    """Attention in the blocks of `layer_types`, or without it in those of `full_attn_idxs`, or in all."""
    indices = indices_of_blocks(fields, "full_attn_idxs")
    if fields.content.get("layer_types") is not None:
        fields.idle.add("full_attn_idxs")
    return mixers(fields, lambda index: FULL if indices is None or index in indices else "conv", _TYPES)


@dataclass(frozen=True)
class _Width(Row):
    """The width of the MLP: that of the fields, or where it is adjusted, two thirds of it and rounded up."""

    names = (
        "intermediate_size", "block_ff_dim", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier",
        "block_multiple_of",
    )  # fmt: skip

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        fields.read.update(self.names)
        name = "block_ff_dim" if "block_ff_dim" in fields.content else "intermediate_size"
        fields.idle |= {"intermediate_size"} - {name}
        size = fields.number(name, 12288)
        if fields.get("block_auto_adjust_ff_dim", True):
            size = int(2 * size / 3)
            multiplier = fields.get("block_ffn_dim_multiplier", 1.0)
            if multiplier is not None:
                multiple = fields.number("block_multiple_of", 256)
                size = -(-int(multiplier * size) // multiple) * multiple
        else:
            fields.idle |= {"block_ffn_dim_multiplier", "block_multiple_of"}
        yield fields.value(key_of(GatedMLP, "intermediate_size"), size, name)

    def exported(self, view: View) -> dict[str, Any]:
        mlp = view.first(GatedMLP)
        return {} if mlp is None else {"intermediate_size": mlp.gate.out_features, "block_auto_adjust_ff_dim": False}


def _convolution(scope: str) -> tuple[Row, ...]:
    return (
        Set(DecoderBlock, "mixer", ShortConvolutionMixer, scope),
        Set(CausalConvolution, "activation", None, scope),
        *convolution("conv_L_cache", "conv_bias", scope, size=3, has_bias=False),
        Bias(("B", "C", "x", "output"), Linear, ShortConvolutionMixer, "conv_bias", False, within(scope, "mixer")),
    )


def _attention(scope: str) -> tuple[Row, ...]:
    return (*attention(kv_heads=8, scope=scope), *query_key_norm(), Rope(1e6, scope=scope))


LFM_2 = Family(
    "LFM2",
    {"lfm2": "Lfm2ForCausalLM"},
    (
        *sizes(tied=True, aliases=("tie_embedding",)),
        Kinds(
            ("num_hidden_layers", "layer_types", "full_attn_idxs"),
            _kinds,
            {"conv": _convolution, "attention": _attention},
            lambda block: "attention" if isinstance(block.mixer, Attention) else "conv",
            lambda kinds: written_mixers(kinds, _TYPES),
        ),
        attention_bias(None),
        *rms_norm(1e-5, "norm_eps"),
        Set(DecoderBlock, "mlp", GatedMLP),
        Set(GatedMLP, "activation", silu),
        _Width(),
        mlp_bias(),
    ),
    (
        row("model.embed_tokens.weight", "embeddings.token.weight"),
        row("model.embedding_norm.weight", "head.norm.weight"),
        row("lm_head.weight", "head.weight"),
        *rows_within(_LAYER, "{block}", {"operator_norm.weight": "mixer_norm.weight"}),
        *rows_within(_LAYER, "{block}", {"ffn_norm.weight": "mlp_norm.weight"}),
        *rows_within(f"{_LAYER}.feed_forward", "{block}.mlp", {"w1.": "gate.", "w3.": "up.", "w2.": "down."}),
        *attention_tensors(f"{_LAYER}.self_attn", "out_proj"),
        *rows_within(f"{_LAYER}.self_attn", "{block}.mixer", _NORMS),
        *joined_tensors(f"{_LAYER}.conv.in_proj", ("B", "C", "x"), _IN_CONVOLUTION),
        *rows_within(f"{_LAYER}.conv", "{block}.mixer", _OUTSIDE, _IN_CONVOLUTION),
    ),
    _KEPT,
)

FAMILIES = (LFM_2,)
