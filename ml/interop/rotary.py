"""Rotary embeddings of a config.json: `rope_theta` with `rope_scaling`, or `rope_parameters`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml.config import ImportedValue
from ml.config.configurable import find
from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Row, View, key_of
from ml.layers import (
    Attention,
    DynamicRotary,
    LinearRotary,
    Llama3Rotary,
    LongRotary,
    Rotary,
    RotaryEmbedding,
    YarnRotary,
)

KINDS: dict[str, type[RotaryEmbedding]] = {
    "default": Rotary,
    "linear": LinearRotary,
    "dynamic": DynamicRotary,
    "llama3": Llama3Rotary,
    "yarn": YarnRotary,
    "longrope": LongRotary,
}
_PARAMETERS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_length",
    },
    "yarn": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "original_max_position_embeddings": "original_length",
    },
    "longrope": {
        "long_factor": "long_factors",
        "short_factor": "short_factors",
        "attention_factor": "attention_factor",
        "original_max_position_embeddings": "original_length",
    },
}
_OPTIONAL = {
    "attention_factor": None, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "mscale": 1.0,
    "mscale_all_dim": 0.0,
}  # fmt: skip
_ORIGINAL = "original_max_position_embeddings"
_OLD_NAMES = {"su": "longrope"}
_ATTRIBUTES = {"low_frequency_factor": "low", "high_frequency_factor": "high"}
_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


def one_dimensional() -> list[type[RotaryEmbedding]]:
    """Returns the rotary embeddings of texts that come with Juniper."""
    found, waiting = [], [RotaryEmbedding]
    while waiting:
        waiting += (kind := waiting.pop(0)).__subclasses__()
        info = find(kind)
        if info is not None and kind.num_axes == 1 and info.selector.startswith("ml."):
            found.append(kind)
    return found


@dataclass(frozen=True)
class Rope(Row):
    """The rotary embedding of all blocks, or of those of one kind.

    Theta, fraction and pairing are bound for every rotary class, so that they stay when a run chooses another scaling.

    Args:
        theta: The value of an absent `rope_theta`; None requires the field.
        fraction: The value of an absent `partial_rotary_factor`; None for a family that rotates whole heads.
        interleaved: Whether adjacent channels are a pair; with `interleave_field` where the field is absent.
        interleave_field: The field for it; empty for a family that decides.
        scaled: Whether `rope_scaling` is about these blocks, if it is not divided by kinds of blocks.
        scaling: The value of an absent `rope_scaling`; None is no scaling.
        mixer: The mixer that holds it.
        scope: The scope of the bindings.
        inside: The entry of `rope_parameters` for these blocks; empty where one is for all.
        theta_field: The field of theta beside `rope_scaling`.
        fraction_field: The field of the rotated fraction of a head beside `rope_scaling`.
    """

    theta: float | None = 10_000.0
    fraction: float | None = None
    interleaved: bool = False
    interleave_field: str = ""
    scaled: bool = True
    scaling: Mapping[str, Any] | None = None
    mixer: type = Attention
    scope: str = ""
    inside: str = ""
    theta_field: str = "rope_theta"
    fraction_field: str = "partial_rotary_factor"

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        others = (self.theta_field, self.fraction_field, self.interleave_field, _ORIGINAL)
        return tuple(dict.fromkeys((*_FIELDS, *filter(None, others))))

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"rope_parameters.{self.inside}",) if self.inside else self.names

    @property
    def _fraction(self) -> float:
        return 1.0 if self.fraction is None else self.fraction

    def at(self, scope: str) -> "Rope":
        """Returns the row for another scope."""
        return replace(self, scope=scope)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        values, where = self._parameters(fields)
        kind = values.pop("rope_type", values.pop("type", "default"))
        values.pop("type", None)
        kind = _OLD_NAMES.get(kind, kind) if isinstance(kind, str) else str(kind)
        if kind not in KINDS:
            raise InteropError(f"{where('rope_type')} is {kind!r}, and there is only {', '.join(KINDS)}")
        theta = values.pop("rope_theta", None)
        fraction = values.pop("partial_rotary_factor", None)
        if self.fraction is None and fraction != 1.0:
            raise InteropError(f"{where('partial_rotary_factor')} is {fraction!r}, which the family does not have")
        pairs = fields.get(self.interleave_field, self.interleaved) if self.interleave_field else self.interleaved
        yield self._value(fields, self.mixer, "rotary", KINDS[kind], where("rope_type"))
        for one in one_dimensional():
            yield self._value(fields, one, "theta", theta, where("rope_theta"))
            yield self._value(fields, one, "fraction", fraction, where("partial_rotary_factor"))
            yield self._value(fields, one, "interleaved", pairs, f"config.json#{self.interleave_field or 'model_type'}")
        yield from self._scaling(fields, kind, values, where)

    def _scaling(self, fields: ConfigFields, kind: str, values: dict[str, Any], where) -> Iterator[ImportedValue]:
        longest = fields.content.get("max_position_embeddings")
        if kind == "yarn":
            values = _with_temperatures(values)
        if kind == "longrope":
            values = _with_long_factor(values, fields)
        if kind == "dynamic":
            original = values.pop("original_max_position_embeddings", None)
            values.pop("attention_factor", None)
            length = longest if longest is not None else original
            fields.read.add("max_position_embeddings")
            yield self._value(fields, DynamicRotary, "original_length", length, "config.json#max_position_embeddings")
        known = _PARAMETERS[kind]
        if _ORIGINAL not in known:
            fields.idle.add(_ORIGINAL)
        for name, parameter in known.items():
            value = values.pop(name, None)
            if name == _ORIGINAL:
                value = fields.content.get(name, longest if value is None else value)
                if name in fields.content:
                    fields.idle |= {f"{outer}.{name}" for outer in ("rope_parameters", "rope_scaling")}
            if value is None and name not in _OPTIONAL:
                raise InteropError(f"{where(name)} is missing, which {kind} needs")
            value = _OPTIONAL.get(name) if value is None else value
            yield self._value(fields, KINDS[kind], parameter, value, where(name))
        if left := {name: value for name, value in values.items() if value is not None}:
            raise InteropError(f"{where(min(left))} is {left[min(left)]!r}, which rotary embeddings here do not have")

    def _parameters(self, fields: ConfigFields):
        """Returns what the fields say, and a function for the place of each part."""
        fields.read.update(self.names)
        content = fields.content
        old, new = content.get("rope_scaling"), content.get("rope_parameters")
        if old and new and old != new:
            raise InteropError("config.json has both rope_scaling and rope_parameters, and they differ")
        spelled = "rope_scaling" if old else "rope_parameters"
        values = old or new
        values = self.scaling or {} if values is None else values
        if self.inside and isinstance(values, Mapping) and self.inside in values:
            values, spelled = values[self.inside], f"{spelled}.{self.inside}"
        elif not self.scaled:
            values = {}
        if not isinstance(values, Mapping):
            raise InteropError(f"config.json#{spelled} must be an object, not {values!r}")
        values = dict(values)
        inside = set(values)
        defaults = (
            ("rope_theta", self.theta, self.theta_field),
            ("partial_rotary_factor", self._fraction, self.fraction_field),
        )
        for name, default, other in defaults:
            values[name] = values.get(name) if values.get(name) is not None else content.get(other)
            if values[name] is None:
                values[name] = default
            if values[name] is None:
                raise InteropError(f"config.json has no {name}")

        def where(name: str) -> str:
            if name in inside or (name == "rope_type" and "type" in inside):
                return f"config.json#{spelled}.{name if name in inside else 'type'}"
            outside = {"rope_theta": self.theta_field, "partial_rotary_factor": self.fraction_field}
            spelled_outside = outside.get(name, name)
            return f"config.json#{spelled_outside}{'' if spelled_outside in content else ' (absent)'}"

        return values, where

    def _value(self, fields: ConfigFields, kind: type, parameter: str, value: Any, source: str) -> ImportedValue:
        return ImportedValue(key_of(kind, parameter, self.scope), value, source)

    def exported(self, view: View) -> dict[str, Any]:
        values = self.exported_parameters(view)
        if values is None:
            return {}
        if self.inside:
            if values["partial_rotary_factor"] == self._fraction:
                del values["partial_rotary_factor"]
            return {"rope_parameters": {self.inside: values}}
        theta = values.pop("rope_theta")
        fraction = values.pop("partial_rotary_factor")
        fields: dict[str, Any] = {self.theta_field: theta}
        if fraction != self._fraction:
            fields[self.fraction_field] = fraction
        if values["rope_type"] == "dynamic":
            fields["max_position_embeddings"] = view.first(DynamicRotary, self.scope).original_length
        if values["rope_type"] == "longrope":
            fields[_ORIGINAL] = values[_ORIGINAL]  # beside the others Phi-3 takes its own default
        if values["rope_type"] != "default" or self.scaling:
            fields["rope_scaling"] = values
        if self.interleave_field:
            fields[self.interleave_field] = view.first(self.mixer, self.scope).rotary.interleaved
        return fields

    def exported_parameters(self, view: View) -> dict[str, Any] | None:
        """Returns the parameters of the rotary embedding of a model; None without one."""
        mixer = view.first(self.mixer, self.scope)
        rotary = None if mixer is None else mixer.rotary
        if rotary is None:
            return None
        kind = next((name for name, one in KINDS.items() if type(rotary) is one), None)
        if kind is None:
            raise InteropError(f"{self.mixer.__name__}.rotary is {type(rotary).__name__}, which the format has not")
        values = {"rope_type": kind, "rope_theta": rotary.theta}
        values["partial_rotary_factor"] = _fraction_of(rotary)
        for name, parameter in _PARAMETERS[kind].items():
            if name not in ("mscale", "mscale_all_dim"):
                values[name] = getattr(rotary, _ATTRIBUTES.get(parameter, parameter))
        if kind == "yarn" and rotary.softmax_factor != 1.0:
            values |= _temperatures(rotary)
        return values


def _fraction_of(rotary: RotaryEmbedding) -> float:
    """Returns a fraction of the head of which the integer part is the rotated size."""
    fraction = rotary.rotary_size / rotary.head_size
    return fraction if int(rotary.head_size * fraction) == rotary.rotary_size else math.nextafter(fraction, 2.0)


def _temperatures(rotary: YarnRotary) -> dict[str, float | None]:
    """Returns the `mscale` pair of an embedding, which decides the factor of query and key too."""
    growth = math.log(rotary.factor)
    of_all = math.sqrt(rotary.softmax_factor)
    scales = {"mscale_all_dim": of_all, "mscale": rotary.attention_factor * of_all}
    return {"attention_factor": None, **{name: round((one - 1.0) / (0.1 * growth), 9) for name, one in scales.items()}}


def _with_temperatures(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with the `mscale` pair that transformers takes: both, or none.

    Raises:
        InteropError: One is set alone, which some families of transformers ignore and some do not.
    """
    pair = [bool(values.get(name)) for name in ("mscale", "mscale_all_dim")]
    if any(pair) and not all(pair):
        raise InteropError("config.json: rotary embeddings with one of mscale and mscale_all_dim are not imported")
    return values


def _with_long_factor(values: dict[str, Any], fields: ConfigFields) -> dict[str, Any]:
    """Returns the values with the factor of query and key, which is computed where it is absent."""
    values = dict(values)
    longest = fields.content.get("max_position_embeddings")
    original = fields.content.get("original_max_position_embeddings", values.get("original_max_position_embeddings"))
    factor = values.pop("factor", None)
    if values.get("attention_factor") is not None:
        fields.idle |= {f"{name}.factor" for name in ("rope_parameters", "rope_scaling")}
        return values
    try:
        factor = longest / original if factor is None else factor
        growth = math.sqrt(1.0 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
        return {**values, "attention_factor": growth}
    except (TypeError, ValueError, ZeroDivisionError):
        raise InteropError("config.json: longrope needs max_position_embeddings and its original length") from None
