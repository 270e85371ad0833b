"""EXAONE 4: norms of the output of each branch, and no rotary embedding where blocks with a window have it."""

from ml.interop.common import (
    ATTENTION,
    EMBEDDINGS_AND_HEAD,
    GATED_MLP,
    QUERY_KEY_NORM,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    query_key_norm,
    rms_norm,
    sizes,
)
from ml.interop.families.olmo2 import BRANCH_NORMS, normalized_branches
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Field, Row, Set
from ml.interop.kinds import FULL, SHORT, SLIDING, Kinds, attention_kind, layer_types, written_attention_kinds
from ml.interop.rotary import Rope
from ml.layers import Attention

_FIELDS = ("layer_types", "num_hidden_layers", "sliding_window", "sliding_window_pattern")


def _kinds(fields: ConfigFields) -> list[str]:
    window = fields.get("sliding_window", 4096)
    period = fields.get("sliding_window_pattern", 4)
    if fields.content.get("layer_types") is not None or window is None:
        fields.idle.add("sliding_window_pattern")
    if window is None:
        fields.idle.add("layer_types")
        return ["whole"] * fields.number("num_hidden_layers")
    types = layer_types(fields, lambda index: SLIDING if type(period) is int and (index + 1) % period else FULL)
    return [SHORT.get(name, name) for name in types]


def _which(block) -> str:
    kind = attention_kind(block)
    return kind if kind == "sliding" or getattr(block.mixer, "rotary", None) is None else "whole"


def _written(kinds) -> dict:
    known = ["full" if kind == "whole" else kind for kind in kinds]
    without = {} if "sliding" in kinds or "full" in kinds else {"sliding_window": None}
    return {**written_attention_kinds(known), **without}


def _window(scope: str) -> tuple[Row, ...]:
    return (
        Field("sliding_window", Attention, "window_size", default=4096, scope=scope),
        Rope(scope=scope),
    )


EXAONE_4 = Family(
    "EXAONE 4",
    {"exaone4": "Exaone4ForCausalLM"},
    (
        *sizes(),
        Kinds(
            _FIELDS,
            _kinds,
            {
                "sliding": _window,
                "full": lambda scope: (
                    Set(Attention, "window_size", None, scope),
                    Set(Attention, "rotary", None, scope),
                ),
                "whole": lambda scope: (Set(Attention, "window_size", None, scope), Rope(scope=scope)),
            },
            _which,
            _written,
        ),
        *attention(kv_heads=32),
        attention_bias(None),
        *query_key_norm(),
        *rms_norm(1e-5),
        *normalized_branches(),
        *gated_mlp(),
        mlp_bias(),
    ),
    (*EMBEDDINGS_AND_HEAD, *ATTENTION, *QUERY_KEY_NORM, *GATED_MLP, *BRANCH_NORMS),
)

FAMILIES = (EXAONE_4,)
