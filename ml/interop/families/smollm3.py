"""SmolLM3: Llama with blocks without rotary embedding."""

from collections.abc import Sequence
from typing import Any

from ml.interop.common import (
    LLAMA_TENSORS,
    attention,
    attention_bias,
    gated_mlp,
    mlp_bias,
    rms_norm,
    sizes,
)
from ml.interop.errors import InteropError
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Fixed, Set
from ml.interop.kinds import Kinds
from ml.interop.rotary import Rope
from ml.layers import Attention


def _kinds(fields: ConfigFields) -> list[str]:
    """A rotary embedding in the blocks with a 1 in `no_rope_layers`, else in all but every n-th one."""
    count = fields.number("num_hidden_layers")
    flags = fields.get("no_rope_layers", None)
    if flags is None:
        interval = fields.number("no_rope_layer_interval", 4)
        flags = [int((index + 1) % interval != 0) for index in range(count)]
    else:
        fields.idle.add("no_rope_layer_interval")
    if not isinstance(flags, list) or len(flags) != count or any(flag not in (0, 1) for flag in flags):
        raise InteropError(f"config.json#no_rope_layers must have {count} times 0 or 1, not {flags!r}")
    return ["rotated" if flag else "plain" for flag in flags]


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    return {"num_hidden_layers": len(kinds), "no_rope_layers": [int(kind == "rotated") for kind in kinds]}


SMOLLM_3 = Family(
    "SmolLM3",
    {"smollm3": "SmolLM3ForCausalLM"},
    (
        *sizes(tied=True),
        Kinds(
            ("num_hidden_layers", "no_rope_layers", "no_rope_layer_interval"),
            _kinds,
            {
                "rotated": lambda scope: (Rope(2e6, scope=scope),),
                "plain": lambda scope: (Set(Attention, "rotary", None, scope),),
            },
            lambda block: "plain" if getattr(block.mixer, "rotary", None) is None else "rotated",
            _written,
            "no_rope_layers",
        ),
        *attention(kv_heads=4),
        attention_bias(),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
        Fixed("use_sliding_window", False),
    ),
    LLAMA_TENSORS,
    frozenset(("sliding_window", "layer_types", "max_window_layers")),
)

FAMILIES = (SMOLLM_3,)
