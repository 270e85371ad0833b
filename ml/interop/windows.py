"""Blocks with a window beside blocks without one, as `layer_types` or a period has them."""

from ml.interop.fields import ConfigFields, Field, Row, Set
from ml.interop.kinds import FULL, SHORT, SLIDING, Kinds, attention_kind, layer_types, written_attention_kinds
from ml.interop.rotary import Rope
from ml.layers import Attention


def windows(period: int, *ropes: Rope, window: int = 4096, patterns: tuple[str, ...] = ()) -> Kinds:
    """The blocks with a window and those without.

    Args:
        period: Without `layer_types`, the last of so many blocks has no window.
        ropes: The rotary embeddings of blocks with and without a window; none where one is for all.
        window: The value of an absent `sliding_window`.
        patterns: Names of a field that stands in for the period.
    """

    def read(fields: ConfigFields) -> list[str]:
        every = next((fields.number(name) for name in patterns if fields.content.get(name) is not None), period)
        if fields.get("layer_types", None):
            fields.idle.update(patterns)
        types = layer_types(fields, lambda index: SLIDING if (index + 1) % every else FULL)
        return [SHORT.get(kind, kind) for kind in types]

    def with_window(scope: str) -> tuple[Row, ...]:
        return (Field("sliding_window", Attention, "window_size", default=window, scope=scope), *rope(SLIDING, scope))

    def without_window(scope: str) -> tuple[Row, ...]:
        return (Set(Attention, "window_size", None, scope), *rope(FULL, scope))

    def rope(kind: str, scope: str) -> list[Rope]:
        return [one.at(scope) for one in ropes if one.inside == kind]

    return Kinds(
        ("layer_types", "num_hidden_layers", "sliding_window", *patterns),
        read,
        {"sliding": with_window, "full": without_window},
        attention_kind,
        written_attention_kinds,
    )
