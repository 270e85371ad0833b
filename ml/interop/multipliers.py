"""Rows of factors of parts of a model (Falcon-H1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml.config import ImportedValue
from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Row, View, key_of
from ml.layers import Attention, GatedMLP


@dataclass(frozen=True)
class Multipliers(Row):
    """Factors in fields, some of them lists, that are one parameter: a dict of factors by name.

    Args:
        fields: The fields, a factor in each; or one field with a list.
        configurable: The component.
        parameter: Its parameter.
        keys: The names of the factors.
    """

    fields: tuple[str, ...]
    configurable: type
    parameter: str
    keys: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.fields

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        is_list = len(self.fields) == 1
        found = fields.get(self.fields[0], None) if is_list else [fields.get(name, 1.0) for name in self.fields]
        found = [1.0] * len(self.keys) if found is None else found
        if not isinstance(found, list) or len(found) != len(self.keys):
            raise InteropError(f"config.json#{self.fields[0]} must have {len(self.keys)} factors, not {found!r}")
        key = key_of(self.configurable, self.parameter)
        yield fields.value(key, dict(zip(self.keys, found, strict=True)), self.fields[0])

    def exported(self, view: View) -> dict[str, Any]:
        module = view.first(self.configurable)
        if module is None:
            return {}
        found = getattr(module, self.parameter)
        return {self.fields[0]: list(found)} if len(self.fields) == 1 else dict(zip(self.fields, found, strict=False))


@dataclass(frozen=True)
class OfMLP(Row):
    """The factors of the gate and of the output of the MLP."""

    names = ("mlp_multipliers",)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        found = fields.get("mlp_multipliers", None) or [1.0, 1.0]
        if not isinstance(found, list) or len(found) != 2:
            raise InteropError(f"config.json#mlp_multipliers must have 2 factors, not {found!r}")
        for parameter, value in zip(("gate_scale", "output_scale"), found, strict=True):
            yield fields.value(key_of(GatedMLP, parameter), value, "mlp_multipliers")

    def exported(self, view: View) -> dict[str, Any]:
        mlp = view.first(GatedMLP)
        return {} if mlp is None else {"mlp_multipliers": [mlp.gate_scale, mlp.output_scale]}


@dataclass(frozen=True)
class OfKeys(Row):
    """The factor of the keys, as one of the scores."""

    names = ("key_multiplier",)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        size = fields.content.get("head_dim")
        size = fields.number("hidden_size") // fields.number("num_attention_heads") if size is None else size
        value = fields.get("key_multiplier", 1.0)
        try:
            scale = size**-0.5 * value
        except TypeError:
            raise InteropError(f"config.json#key_multiplier must be a number, not {value!r}") from None
        yield fields.value(key_of(Attention, "softmax_scale"), scale, "key_multiplier")

    def exported(self, view: View) -> dict[str, Any]:
        mixer = view.first(Attention)
        if mixer is None:
            return {}
        scale = mixer.head_size**-0.5 if mixer.softmax_scale is None else mixer.softmax_scale
        return {"key_multiplier": float(f"{scale * mixer.head_size**0.5:.12g}")}
