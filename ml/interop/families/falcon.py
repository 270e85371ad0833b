"""Falcon: 7B and RW, with all or one key head, and the later architecture of 11B, 40B and 180B with grouped heads."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml.blocks import DecoderBlock
from ml.config import ImportedValue
from ml.interop.alibi import RotaryOrAlibi
from ml.interop.common import INTERMEDIATE_SIZE, QUERY_KEY_VALUE, layer_norm, plain_mlp, repeated, sizes
from ml.interop.errors import InteropError
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Fixed, Row, Set, View, key_of
from ml.interop.rotary import Rope
from ml.interop.tensors import ByHead, TensorRow, linear_rows, row
from ml.layers import Attention, Linear

_LAYER = "transformer.h.{i}"
_WIDTH = replace(INTERMEDIATE_SIZE, name="ffn_hidden_size", default=lambda fields: 4 * fields.number("hidden_size"))


def _key_heads(config: Mapping[str, Any]) -> int:
    """Returns the number of key heads, which is also that of the groups in `query_key_value`."""
    if not config.get("new_decoder_architecture", False) and config.get("multi_query", True):
        return 1
    return config.get("num_kv_heads") or config["num_attention_heads"]


def _has_two_norms(config: Mapping[str, Any]) -> bool:
    """Returns whether both halves of a parallel block have a norm, with other names than those of others."""
    count = config.get("num_ln_in_parallel_attn")
    return bool(config.get("new_decoder_architecture", False)) and count in (None, 2)


@dataclass(frozen=True)
class Architecture(Row):
    """Key heads and norms, by the two architectures."""

    names = ("new_decoder_architecture", "multi_query", "num_kv_heads", "parallel_attn", "num_ln_in_parallel_attn")

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        is_new, is_parallel = fields.get(self.names[0], False), fields.get("parallel_attn", True)
        one_key, norms = fields.get("multi_query", True), fields.get("num_ln_in_parallel_attn", None)
        heads, keys = fields.number("num_attention_heads"), fields.get("num_kv_heads", None)
        if is_new:
            fields.idle.add("multi_query")
            fits = is_parallel and norms in (None, 1, 2)
        else:
            fits = norms in (None, 1) and (one_key or keys in (None, heads))
            fields.idle |= {"num_kv_heads"} if one_key else set()
        if not fits:
            found = ", ".join(f"{name} = {fields.content.get(name)!r}" for name in self.names)
            raise InteropError(f"config.json has fields that no Falcon combines: {found}")
        yield fields.value(key_of(Attention, "num_kv_heads"), _key_heads(fields.content), "num_kv_heads")
        yield fields.value(key_of(DecoderBlock, "parallel"), is_parallel, "parallel_attn")
        shared = is_parallel and not _has_two_norms(fields.content)
        yield fields.value(key_of(DecoderBlock, "shared_norm"), shared, "num_ln_in_parallel_attn")

    def exported(self, view: View) -> dict[str, Any]:
        block, mixer = view.blocks[0] if view.blocks else None, view.first(Attention)
        if not isinstance(block, DecoderBlock) or mixer is None:
            return {}
        shares = block.parallel and block.mlp_norm is None
        if mixer.num_kv_heads in (1, mixer.num_heads) and (shares or not block.parallel):
            of_old = {"multi_query": mixer.num_kv_heads == 1, "parallel_attn": block.parallel}
            return {"new_decoder_architecture": False, **of_old}
        norms = {"num_ln_in_parallel_attn": 1 if shares else 2}
        return {"new_decoder_architecture": True, "num_kv_heads": mixer.num_kv_heads, **norms}


def _norms(mixer: str, mlp: str, when: Callable[[Mapping[str, Any]], bool]) -> tuple[TensorRow, ...]:
    names = {f"{_LAYER}.{mixer}": "{block}.mixer_norm", f"{_LAYER}.{mlp}": "{block}.mlp_norm"}
    return linear_rows(names, when=when)


FALCON = Family(
    "Falcon 1 and 2",
    {"falcon": "FalconForCausalLM"},
    (
        *sizes(tied=True),
        *repeated(),
        Set(DecoderBlock, "mixer", Attention),
        Field("num_attention_heads", Attention, "num_heads"),
        Architecture(),
        Field("attention_dropout", Attention, "dropout", default=0.0),
        Field("hidden_dropout", DecoderBlock, "dropout", default=0.0),
        Bias((*QUERY_KEY_VALUE, "output"), Linear, Attention, "bias", False),
        *layer_norm("layer_norm_epsilon"),
        *plain_mlp("activation", "gelu", "bias", False, _WIDTH),
        RotaryOrAlibi(Rope(), scaled=True),
        Fixed("apply_residual_connection_post_layernorm", False),
    ),
    (
        row("transformer.word_embeddings.weight", "embeddings.token.weight"),
        row("lm_head.weight", "head.weight"),
        *(
            row(
                f"{_LAYER}.self_attention.query_key_value.{kind}",
                *(f"{{block}}.mixer.{name}.{kind}" for name in QUERY_KEY_VALUE),
                layout=ByHead(_key_heads),
            )
            for kind in ("weight", "bias")
        ),
        *linear_rows(
            {
                f"{_LAYER}.self_attention.dense": "{block}.mixer.output",
                f"{_LAYER}.mlp.dense_h_to_4h": "{block}.mlp.up",
                f"{_LAYER}.mlp.dense_4h_to_h": "{block}.mlp.down",
                "transformer.ln_f": "head.norm",
            }
        ),
        *_norms("ln_attn", "ln_mlp", _has_two_norms),
        *_norms("input_layernorm", "post_attention_layernorm", lambda config: not _has_two_norms(config)),
    ),
    frozenset(("ff_factor",)),
    has_code=True,
)

FAMILIES = (FALCON,)
