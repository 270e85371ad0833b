"""Rotary embeddings or linear biases, by one field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.config import ImportedValue
from ml.interop.fields import ConfigFields, Row, View, key_of
from ml.interop.rotary import Rope
from ml.layers import Attention


@dataclass(frozen=True)
class RotaryOrAlibi(Row):
    """A rotary embedding, or linear biases where `alibi` is true.

    Args:
        rope: The rotary embedding.
        scaled: Whether the biases are scaled as the scores are.
    """

    rope: Rope
    scaled: bool

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("alibi", *self.rope.names)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        has_biases = fields.get("alibi", False)
        yield fields.value(key_of(Attention, "alibi"), has_biases, "alibi")
        if not has_biases:
            yield from self.rope.imported(fields)
            return
        fields.read.update(self.rope.names)
        fields.idle.update(self.rope.names)
        yield fields.value(key_of(Attention, "rotary"), None, "alibi")
        yield fields.value(key_of(Attention, "scale_alibi"), self.scaled, "alibi")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Attention)
        return {"alibi": mixer is not None and mixer.alibi, **self.rope.exported(view)}
