"""SmolLM3: Llama with blocks without rotary embedding, which may have a window."""

from collections.abc import Sequence
from functools import partial
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
from ml.interop.fields import ConfigFields, Field, Row, Set
from ml.interop.kinds import FULL, SLIDING, Kinds, attention_kind, layer_types, written_attention_kinds
from ml.interop.rotary import Rope
from ml.layers import Attention

_WINDOW = "_sliding"
_FIELDS = (
    "num_hidden_layers",
    "no_rope_layers",
    "no_rope_layer_interval",
    "layer_types",
    "use_sliding_window",
    "sliding_window",
)


def _rotated(fields: ConfigFields) -> list[bool]:
    """A rotary embedding in the blocks with a 1 in `no_rope_layers`, else in all but every n-th one."""
    count = fields.number("num_hidden_layers")
    flags = fields.get("no_rope_layers", None)
    if flags is None:
        interval = fields.number("no_rope_layer_interval", 4)
        return [(index + 1) % interval != 0 for index in range(count)]
    fields.idle.add("no_rope_layer_interval")
    if not isinstance(flags, list) or len(flags) != count or any(flag not in (0, 1) for flag in flags):
        raise InteropError(f"config.json#no_rope_layers must have {count} times 0 or 1, not {flags!r}")
    return [bool(flag) for flag in flags]


def _kinds(fields: ConfigFields) -> list[str]:
    rotated = _rotated(fields)
    has_windows = fields.get("use_sliding_window", False) and fields.get("sliding_window", None) is not None
    types = layer_types(fields, lambda index: SLIDING if has_windows and not rotated[index] else FULL)
    if SLIDING in types and not has_windows:
        raise InteropError("config.json#layer_types has windows, and use_sliding_window or sliding_window has none")
    if SLIDING not in types:
        fields.idle |= {"sliding_window"} | ({"use_sliding_window"} if "layer_types" in fields.content else set())
    pairs = zip(rotated, types, strict=True)
    return [("rotated" if is_rotated else "plain") + (_WINDOW if kind == SLIDING else "") for is_rotated, kind in pairs]


def _block(kind: str, scope: str) -> tuple[Row, ...]:
    has_window, is_rotated = kind.endswith(_WINDOW), kind.startswith("rotated")
    field = Field("sliding_window", Attention, "window_size", default=None, scope=scope)
    return (
        field if has_window else Set(Attention, "window_size", None, scope),
        Rope(2e6, scope=scope) if is_rotated else Set(Attention, "rotary", None, scope),
    )


def _which(block: Any) -> str:
    rotary = "plain" if getattr(block.mixer, "rotary", None) is None else "rotated"
    return rotary + (_WINDOW if attention_kind(block) == "sliding" else "")


def _written(kinds: Sequence[str]) -> dict[str, Any]:
    types = ["sliding" if kind.endswith(_WINDOW) else "full" for kind in kinds]
    return {
        **written_attention_kinds(types),
        "no_rope_layers": [int(kind.startswith("rotated")) for kind in kinds],
        "use_sliding_window": "sliding" in types,
    }


SMOLLM_3 = Family(
    "SmolLM3",
    {"smollm3": "SmolLM3ForCausalLM"},
    (
        *sizes(tied=True),
        Kinds(
            _FIELDS,
            _kinds,
            {kind: partial(_block, kind) for kind in ("rotated", "plain", f"rotated{_WINDOW}", f"plain{_WINDOW}")},
            _which,
            _written,
            "no_rope_layers",
        ),
        *attention(kv_heads=4),
        attention_bias(),
        *rms_norm(),
        *gated_mlp(),
        mlp_bias("mlp_bias"),
    ),
    LLAMA_TENSORS,
    frozenset(("max_window_layers",)),
)

FAMILIES = (SMOLLM_3,)
