"""Provenance: value, source and place of every parameter of every component, and the values it overrode (rule 8)."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import gin

from ml.config.configurable import reference_to
from ml.config.errors import did_you_mean
from ml.config.plans import Call
from ml.config.scopes import compress, matches, occurs
from ml.config.signatures import EMPTY, Configurable, ParameterSpec
from ml.config.statements import Layer, Unset
from ml.config.values import UnwritableError, short_name, to_text
from ml.errors import UserError


@dataclass(frozen=True, slots=True)
class Origin:
    """A value as gin text, its source and its place, which is empty for a value in code."""

    value: str
    source: str
    location: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One parameter of one component.

    Attributes:
        path: The place of the component, `decoder/block_3/mixer/query`.
        configurable: The configurable that is built there.
        parameter: The parameter.
        value: The value as gin text.
        source: `default`, `parent`, `imported`, `file` or `flag`.
        location: `configs/base.gin:12`, `--gin_bindings[0]`, or empty for a value in code.
        explicit: Whether a user set it.
        overrode: The values that it overrode, in order of precedence, lowest first.
    """

    path: str
    configurable: str
    parameter: str
    value: str
    source: str
    location: str
    explicit: bool
    overrode: tuple[Origin, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns the record in the format of provenance.json."""
        overrode = [{"value": o.value, "source": o.source, "location": o.location} for o in self.overrode]
        names = ("path", "configurable", "parameter", "value", "source", "location", "explicit")
        return {**{name: getattr(self, name) for name in names}, "overrode": overrode}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Record":
        """Returns the record that `as_json` wrote.

        Raises:
            ValueError | KeyError | TypeError: It is not such a record.
        """
        overrode = tuple(Origin(**origin) for origin in record["overrode"])
        texts = [*record.values(), *(text for o in overrode for text in (o.value, o.source, o.location))]
        is_text = [isinstance(text, str) and (text.isprintable() or "\n" in text) for text in texts]
        if is_text.count(False) != 2 or not isinstance(record["explicit"], bool):  # that, and `overrode`
            raise ValueError("a record has values other than text")
        return cls(**{**record, "overrode": overrode})


def records(
    calls: Iterable[Call], unset: Sequence[Unset] = (), spell: Callable[[Configurable], str] = short_name
) -> Iterator[Record]:
    """Yields the records of all constructions, in the order of the build.

    Args:
        calls: The constructions.
        unset: The statements that removed bindings; the removed values count as overridden.
        spell: Returns the name of a configurable.
    """
    for call in calls:
        for spec in call.parameters:
            origins = _origins(call, spec, spell)
            if origins:
                origins[-1:-1] = _unset(call, spec.name, unset, spell)
                *overrode, last = origins
                explicit = last.source in ("file", "flag")
                path = "/".join(call.path)
                name = spell(call.info)
                yield Record(path, name, spec.name, last.value, last.source, last.location, explicit, tuple(overrode))


def _origins(call: Call, spec: ParameterSpec, spell: Callable[[Configurable], str]) -> list[Origin]:
    """All values of a parameter in order of precedence, the one in force last; empty if none can be written."""
    parameter = spec.name
    if parameter in call.arguments:
        text = readable(call.arguments[parameter], spell)
        return [Origin(text, "parent")] if text is not None else []
    found: list[tuple[float, Origin]] = []
    if spec.default is not EMPTY and spec.default is not gin.REQUIRED:
        found.append((-2, Origin(_default_text(spec.default, spell), "default")))
    suggested = call.suggestions
    if parameter in suggested.defaults:
        found.append((0, Origin(text_of(suggested.defaults[parameter], spell), "parent")))
    if parameter in suggested.derived:
        found.append((2, Origin(text_of(suggested.derived[parameter], spell), "parent")))
    saved = [suggested.saved[parameter]] if parameter in suggested.saved else []
    for binding in [*saved, *(candidate.binding for candidate in call.plan.candidates.get(parameter, ()))]:
        for state in binding.states:
            origin = Origin(text_of(state.value, spell), *state.origin)
            found.append(({Layer.DEFAULT: -1, Layer.PARENT: 1}.get(binding.layer, 3), origin))
    found.sort(key=lambda pair: pair[0])  # stable: candidates stay in their order
    return [origin for _, origin in found]


def _default_text(value: Any, spell: Callable[[Configurable], str]) -> str:
    """A default of the code as gin text, or its type if it cannot be written."""
    return readable(value, spell) or f"<{type(value).__qualname__}>"


def _unset(call: Call, parameter: str, unset: Sequence[Unset], spell: Callable[[Configurable], str]) -> list[Origin]:
    """The values for a parameter that a later statement removed."""
    return [
        Origin(text_of(b.value, spell), b.source.name.lower(), f"{b.location}, unset by {statement.binding.location}")
        for statement in unset
        for b in statement.removed
        if b.configurable is call.info and b.parameter == parameter and occurs(b.scope, call.path)
    ]


def text_of(value: Any, spell: Callable[[Configurable], str] = short_name) -> str:
    """Returns a value as gin text.

    Raises:
        UnwritableError: The value cannot be written.
    """
    return to_text(value, reference_to, spell)


def readable(value: Any, spell: Callable[[Configurable], str] = short_name) -> str | None:
    """Returns a value as gin text, or None for a value that cannot be written, such as a tensor or module."""
    if inspect.isroutine(value) and reference_to(value) is None:
        return None
    try:
        return text_of(value, spell)
    except UnwritableError:
        return None


def select(found: Iterator[Record], pattern: str) -> list[Record]:
    """Returns the records that a pattern matches.

    The pattern has the form of a binding, `query/Linear.bias`. Every part is optional, and `*` and `?` are wildcards. A
    scope alone matches everything below it, a single word any scope, configurable or parameter of that name.
    """
    *scope, last = pattern.split("/")
    named, dot, parameter = last.rpartition(".")
    return [record for record in found if _selected(record, scope, last, named if dot else "", parameter)]


def _selected(record: Record, scope: list[str], last: str, named: str, parameter: str) -> bool:
    path = record.path.split("/") if record.path else []
    if named:
        fits = fnmatchcase(record.configurable, named) and fnmatchcase(record.parameter, parameter)
        return fits and _occurs(scope, path)
    if fnmatchcase(record.configurable, last) or fnmatchcase(record.parameter, last):
        return _occurs(scope, path)
    return _occurs([*scope, last], path)


def _occurs(scope: list[str], path: list[str]) -> bool:
    remaining = iter(path)
    return all(any(matches(p, component) or fnmatchcase(component, p) for component in remaining) for p in scope)


def value_at(found: list[Record], path: str, name: str) -> Record:
    """Returns the record of one parameter at one place.

    Args:
        found: The records.
        path: The place.
        name: The configurable and the parameter, `Linear.bias`.

    Raises:
        UserError: There is no such record, or several with different values.
    """
    named, _, parameter = name.rpartition(".")
    here = [record for record in found if record.path == path]
    values = [r for r in here if r.parameter == parameter and r.configurable == named]
    if not here:
        paths = dict.fromkeys(record.path for record in found)
        raise UserError(f"nothing is built at {path!r}{did_you_mean(path, paths)}")
    if not values:
        names = [f"{record.configurable}.{record.parameter}" for record in here]
        kinds = ", ".join(dict.fromkeys(record.configurable for record in here))
        raise UserError(f"there is no {name} at {path!r}, where {kinds} is built{did_you_mean(name, names)}")
    if any(record != values[0] for record in values):
        given = ", ".join(dict.fromkeys(record.value for record in values))
        raise UserError(f"{name} is built several times at {path!r}, with the values {given}")
    return values[0]


def explain(found: list[Record]) -> str:
    """Returns records as text, equal ones once with all their places."""
    groups: dict[tuple, list[tuple[str, ...]]] = {}
    for r in found:
        key = (r.configurable, r.parameter, r.value, r.source, r.location, r.overrode)
        groups.setdefault(key, []).append(tuple(r.path.split("/")) if r.path else ())
    lines = []
    for (configurable, parameter, value, source, location, overrode), paths in groups.items():
        lines.append(f"{configurable}.{parameter} = {value}    # {_from(source, location)}")
        lines += [f"    at {place}" for place in compress(paths) if place]
        lines += [f"    overrode {o.value}    # {_from(o.source, o.location)}" for o in reversed(overrode)]
    return "\n".join(lines)


def _from(source: str, location: str) -> str:
    return f"{source}, {location}" if location else source
