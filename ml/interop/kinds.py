"""Blocks of several kinds: a `Pattern` where a model has more than one, else a `Repeat`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ml.blocks import DecoderBlock, Pattern, Repeat
from ml.config import ImportedValue
from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Row, View, key_of
from ml.models import LanguageModel


@dataclass(frozen=True)
class Kinds(Row):
    """The kinds of the blocks, each with its rows in a scope named after it.

    Args:
        fields: The fields that decide, which are read and written besides those of the rows.
        read: Returns the kind of each block.
        rows: By kind, a function from a scope to the rows.
        which: Returns the kind of a built block.
        write: Returns the fields that stand for kinds.
        source: The field that is the source of the kinds.
    """

    fields: tuple[str, ...]
    read: Callable[[ConfigFields], Sequence[str]]
    rows: Mapping[str, Callable[[str], Sequence[Row]]]
    which: Callable[[nn.Module], str]
    write: Callable[[Sequence[str]], dict[str, Any]]
    source: str = "layer_types"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        inside = [name for rows in self.rows.values() for row in rows("") for name in row.names]
        return tuple(dict.fromkeys((*self.fields, *inside)))

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        fields.read.update(self.names)
        kinds = list(self.read(fields))
        used = list(dict.fromkeys(kinds))
        if not kinds or any(kind not in self.rows for kind in used):
            known = ", ".join(self.rows)
            raise InteropError(f"config.json#{self.source} has the kinds {', '.join(map(str, used))}, not {known}")
        if len(used) == 1:
            yield fields.value(key_of(LanguageModel, "decoder"), Repeat, self.source)
            yield fields.value(key_of(Repeat, "block"), DecoderBlock, "model_type")
            yield fields.value(key_of(Repeat, "num_blocks"), len(kinds), self.source)
        else:
            yield fields.value(key_of(LanguageModel, "decoder"), Pattern, self.source)
            yield fields.value(key_of(Pattern, "blocks"), dict.fromkeys(used, DecoderBlock), self.source)
            yield fields.value(key_of(Pattern, "pattern"), kinds, self.source)
        own = {kind: {name for row in self.rows[kind]("") for name in row.parts} for kind in self.rows}
        active = set().union(*(own[kind] for kind in used))
        fields.idle |= set().union(*own.values()) - active
        for kind in used:
            for row in self.rows[kind]("" if len(used) == 1 else kind):
                yield from row.imported(fields)

    def exported(self, view: View) -> dict[str, Any]:
        kinds = [self.which(block) for block in view.blocks]
        found = dict(self.write(kinds))
        for kind in dict.fromkeys(kinds):
            block = view.only(view.blocks[kinds.index(kind)])
            for row in self.rows[kind](""):
                for name, value in row.exported(block).items():
                    nested = isinstance(value, dict) and isinstance(found.get(name), dict)
                    found[name] = {**found[name], **value} if nested else value
        return found


def layer_types(fields: ConfigFields, default: Callable[[int], str]) -> list[str]:
    """Returns the entries of `layer_types`, one a block.

    Args:
        fields: The fields.
        default: The entry of a block in a config.json without them, by its index.

    Raises:
        InteropError: There is not one for each block.
    """
    count = fields.number("num_hidden_layers")
    kinds = fields.get("layer_types", None)
    if kinds is None:
        return [default(index) for index in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not all(isinstance(kind, str) for kind in kinds):
        raise InteropError(f"config.json#layer_types must have {count} names, as num_hidden_layers is, not {kinds!r}")
    return kinds


FULL, SLIDING = "full_attention", "sliding_attention"
SHORT = {FULL: "full", SLIDING: "sliding"}


def attention_kind(block: Any) -> str:
    """Returns "sliding" for a block whose attention has a window, else "full"."""
    return "full" if getattr(block.mixer, "window_size", None) is None else "sliding"


def written_attention_kinds(kinds: Sequence[str]) -> dict[str, Any]:
    """Returns `layer_types` and `num_hidden_layers`."""
    long = {short: name for name, short in SHORT.items()}
    return {"layer_types": [long[kind] for kind in kinds], "num_hidden_layers": len(kinds)}
