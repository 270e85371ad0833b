"""Qwen 2 (and 2.5) and Qwen 3: Llama with biases of query, key and value, or with norms of query and key."""

from collections.abc import Callable

from ml.interop.common import (
    LLAMA_TENSORS,
    QUERY_KEY_NORM,
    QUERY_KEY_VALUE,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    query_key_norm,
    rms_norm,
    sizes,
)
from ml.interop.errors import InteropError
from ml.interop.family import Family
from ml.interop.fields import Bias, ConfigFields, Field, Set
from ml.interop.kinds import FULL, SHORT, SLIDING, Kinds, attention_kind, layer_types, written_attention_kinds
from ml.interop.rotary import Rope
from ml.layers import Attention, Linear

WINDOW_FIELDS = ("layer_types", "num_hidden_layers", "use_sliding_window", "max_window_layers", "sliding_window")


def attention_kinds(fields: ConfigFields, has_window: Callable[[int, int], bool]) -> list[str]:
    """Returns "full" or "sliding" for each block; all are full unless `use_sliding_window` is true.

    Args:
        fields: The fields.
        has_window: Without `layer_types`, whether a block has a window, by its index and `max_window_layers`.

    Raises:
        InteropError: `layer_types` has windows that the other fields do not have.
    """
    uses = fields.get("use_sliding_window", False)
    first = fields.get("max_window_layers", 28)
    window = fields.get("sliding_window", 4096) if uses else None
    found = layer_types(fields, lambda index: SLIDING if window is not None and has_window(index, first) else FULL)
    if SLIDING in found and window is None:
        raise InteropError("config.json#layer_types has windows, and use_sliding_window or sliding_window has none")
    if fields.content.get("layer_types") is not None:
        fields.idle.add("max_window_layers")
        if SLIDING not in found:
            fields.idle |= {"use_sliding_window", "sliding_window"}
    elif window is None:
        fields.idle |= {"max_window_layers", "sliding_window"}
    if not uses:
        fields.idle.add("sliding_window")
    return [SHORT.get(kind, kind) for kind in found]


def windows() -> Kinds:
    """The blocks with a window and those without."""
    return Kinds(
        WINDOW_FIELDS,
        lambda fields: attention_kinds(fields, lambda index, first: index >= first),
        {
            "full": lambda scope: (Set(Attention, "window_size", None, scope),),
            "sliding": lambda scope: (Field("sliding_window", Attention, "window_size", default=4096, scope=scope),),
        },
        attention_kind,
        lambda kinds: {**written_attention_kinds(kinds), "use_sliding_window": "sliding" in kinds},
    )


QWEN_2 = Family(
    "Qwen 2, 2.5",
    {"qwen2": "Qwen2ForCausalLM"},
    (
        *sizes(),
        windows(),
        *attention(kv_heads=32),
        Bias(QUERY_KEY_VALUE, Linear, Attention, default=True),
        Bias(("output",), Linear, Attention, default=False),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias(),
        Rope(),
    ),
    LLAMA_TENSORS,
)
QWEN_3 = Family(
    "Qwen 3",
    {"qwen3": "Qwen3ForCausalLM"},
    (
        *sizes(),
        windows(),
        *attention(kv_heads=32, head_dim=128),
        attention_bias(),
        *query_key_norm(),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias(),
        Rope(),
    ),
    (*LLAMA_TENSORS, *QUERY_KEY_NORM),
)

FAMILIES = (QWEN_2, QWEN_3)
