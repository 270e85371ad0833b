"""Rows that relate the fields of a config.json to the parameters of a model, in both directions."""

import abc
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ml.blocks import BlockSequence
from ml.config import ImportedValue
from ml.config.configurable import find
from ml.interop.errors import InteropError
from ml.layers.walk import named_modules
from ml.models import LanguageModel

ABSENT = object()


class ConfigFields:
    """The fields of a config.json, with a record of those that were read.

    Args:
        content: The content of the file.

    Attributes:
        read: The fields that were read.
        idle: The fields that mean nothing beside the others, in transformers too.
    """

    def __init__(self, content: Mapping[str, Any]):
        self.content = content
        self.read: set[str] = set()
        self.idle: set[str] = set()

    def get(self, name: str, default: Any = ABSENT) -> Any:
        """Returns the value of a field.

        Args:
            name: The field.
            default: The value of an absent field, which transformers takes then.

        Raises:
            InteropError: The field is absent and has no default.
        """
        self.read.add(name)
        value = self.content.get(name, ABSENT)
        if value is ABSENT:
            value = default
        if value is ABSENT:
            raise InteropError(f"config.json has no {name}")
        return value

    def number(self, name: str, default: Any = ABSENT) -> int:
        """Returns the value of a field that must be a positive integer."""
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise InteropError(f"config.json#{name} must be a positive integer, not {value!r}")
        return value

    def value(self, key: str, value: Any, field: str) -> ImportedValue:
        """Returns a binding of the imported layer that comes from a field."""
        absent = "" if field.partition(".")[0] in self.content else " (absent)"
        return ImportedValue(key, value, f"config.json#{field}{absent}")


class View:
    """A model, as the rows read it for an export.

    Args:
        model: The model, on any device.
    """

    def __init__(self, model: LanguageModel):
        self.model = model
        self.modules = named_modules(model)
        self.blocks = model.decoder.blocks if isinstance(model.decoder, BlockSequence) else []

    def only(self, part: nn.Module) -> "View":
        """Returns the view of one part of the model."""
        view = copy.copy(self)
        view.modules = named_modules(part)
        return view

    def first(self, kind: type, scope: str = "") -> Any:
        """Returns the first module of a class whose path contains a scope; None without one."""
        wanted = [name for name in scope.split("/") if name]
        for path, module in self.modules:
            if isinstance(module, kind) and set(wanted) <= set(path.split(".")):
                return module
        return None


def key_of(configurable: Callable[..., Any], parameter: str, scope: str = "") -> str:
    """Returns the key of a parameter in gin's syntax."""
    info = find(configurable)
    assert info is not None, f"{configurable} is not configurable"
    return within(scope, f"{info.selector}.{parameter}")


def within(*scopes: str) -> str:
    """Returns the scope of scopes one inside the other; an empty one is none."""
    return "/".join(filter(None, scopes))


class Row(abc.ABC):
    """Relation between fields of a config.json and parameters of a model.

    Attributes:
        names: The fields that it reads and writes.
    """

    names: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The fields that are about this row alone, with those inside others as `outer.inner`."""
        return self.names

    @abc.abstractmethod
    def imported(self, fields: ConfigFields) -> Iterable[ImportedValue]:
        """Returns the bindings that the fields stand for.

        Raises:
            InteropError: A value cannot be expressed.
        """

    def exported(self, view: View) -> dict[str, Any]:
        """Returns the fields of a model; what they cannot express shows when they are imported again."""
        return {}


@dataclass(frozen=True)
class Field(Row):
    """One field that is one parameter.

    Args:
        name: The field.
        configurable: The component.
        parameter: Its parameter.
        default: The value of an absent field; computed from the fields if it is a function.
        null: Computes the value of a null from the fields; None passes it on.
        scope: The scope of the binding.
        read: Returns the value from a model; None reads the attribute named as the parameter.
        to: Returns the value of the parameter from that of the field.
        back: The inverse of `to`.
        aliases: Other names of the field.
    """

    name: str
    configurable: type
    parameter: str
    default: Any = ABSENT
    null: Callable[[ConfigFields], Any] | None = None
    scope: str = ""
    read: Callable[[View], Any] | None = None
    to: Callable[[Any], Any] = lambda value: value
    back: Callable[[Any], Any] = lambda value: value
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name, *self.aliases)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        for other in self.names:
            fields.read.add(other)
        spellings = [name for name in self.names if name in fields.content]
        name = spellings[0] if spellings else self.name
        if any(fields.content[other] != fields.content[name] for other in spellings):
            raise InteropError(f"config.json has both {' and '.join(spellings)}, and they differ")
        value = fields.get(name, self.default)
        if callable(value):
            value = value(fields)
        if value is None and self.null is not None:
            value = self.null(fields)
        yield fields.value(
            key_of(self.configurable, self.parameter, self.scope), _converted(self.to, value, name), name
        )

    def exported(self, view: View) -> dict[str, Any]:
        module = view.first(self.configurable, self.scope)
        if module is None:
            return {}
        value = getattr(module, self.parameter) if self.read is None else self.read(view)
        return {self.name: value if value is None else self.back(value)}


@dataclass(frozen=True)
class Set(Row):
    """A parameter that is the same for all models of a family."""

    configurable: Callable[..., Any]
    parameter: str
    value: Any
    scope: str = ""

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        yield fields.value(key_of(self.configurable, self.parameter, self.scope), self.value, "model_type")


@dataclass(frozen=True)
class Derived(Row):
    """A parameter that follows from fields which other rows write.

    Args:
        configurable: The component.
        parameter: Its parameter.
        value: Computes the value from the fields.
        field: The field that is its source.
        scope: The scope of the binding.
    """

    configurable: Callable[..., Any]
    parameter: str
    value: Callable[[ConfigFields], Any]
    field: str
    scope: str = ""

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        yield fields.value(key_of(self.configurable, self.parameter, self.scope), self.value(fields), self.field)


@dataclass(frozen=True)
class Fixed(Row):
    """A field with one value that the model can express; any other is refused.

    Args:
        name: The field.
        value: The value.
        equal: Other values that mean the same, as an absent field does.
        is_written: Whether an export writes the field.
        absent: The value of an absent field, where it is another one.
    """

    name: str
    value: Any
    equal: tuple[Any, ...] = ()
    is_written: bool = False
    absent: Any = ABSENT

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        value = fields.get(self.name, self.value if self.absent is ABSENT else self.absent)
        if not any(_same(value, one) for one in (self.value, *self.equal)):
            raise InteropError(f"config.json#{self.name} is {value!r}, and only {self.value!r} can be expressed")
        yield from ()

    def exported(self, view: View) -> dict[str, Any]:
        return {self.name: self.value} if self.is_written else {}


@dataclass(frozen=True)
class Echo(Row):
    """A field that must equal another one wherever both are present.

    Args:
        name: The field.
        other: The other one, which has a row.
        read: Returns the value from a model.
    """

    name: str
    other: str
    read: Callable[[View], Any]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        value, other = fields.get(self.name, None), fields.get(self.other)
        if value not in (None, other):
            raise InteropError(f"config.json#{self.name} is {value!r}, and must equal {self.other}, {other!r}")
        yield from ()

    def exported(self, view: View) -> dict[str, Any]:
        return {self.name: self.read(view)}


@dataclass(frozen=True)
class Bias(Row):
    """The presence of biases in linear layers of some names.

    Args:
        layers: The names.
        name: The field; None for a family that decides.
        default: The value of an absent field, or that of the family.
        owner: The layer that holds them.
        scope: The scope of the bindings.
    """

    layers: tuple[str, ...]
    linear: type
    owner: type
    name: str | None = None
    default: Any = ABSENT
    scope: str = ""

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.name is None else (self.name,)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        value = self.default if self.name is None else fields.get(self.name, self.default)
        for layer in self.layers:
            key = key_of(self.linear, "bias", within(self.scope, layer))
            yield fields.value(key, value, self.name or "model_type")

    def exported(self, view: View) -> dict[str, Any]:
        owner = view.first(self.owner, self.scope)
        if self.name is None or owner is None:
            return {}
        return {self.name: getattr(owner, self.layers[0]).bias is not None}


@dataclass(frozen=True)
class Part(Row):
    """The choice of a component by the name that a field has for it.

    Args:
        name: The field.
        configurable: The component that holds it.
        parameter: Its parameter.
        choices: By the value of the field, the constructor and its parameters; of equal ones the first is written.
        default: The value of an absent field.
        read: Returns what the model has there.
        build: Returns what a constructor builds there.
    """

    name: str
    configurable: type
    parameter: str
    choices: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]
    default: Any = ABSENT
    scope: str = ""

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def imported(self, fields: ConfigFields) -> Iterator[ImportedValue]:
        value = fields.get(self.name, self.default)
        if not isinstance(value, str) or value not in self.choices:
            known = ", ".join(self.choices)
            raise InteropError(f"config.json#{self.name} is {value!r}, and there is only {known}")
        constructor, options = self.choices[value]
        yield fields.value(key_of(self.configurable, self.parameter, self.scope), constructor, self.name)
        for parameter, option in options.items():
            yield fields.value(key_of(constructor, parameter, self.scope), option, self.name)

    def exported(self, view: View) -> dict[str, Any]:
        module = view.first(self.configurable, self.scope)
        if module is None:
            return {}
        there = described(getattr(module, self.parameter))
        for name, (constructor, options) in self.choices.items():
            if described(constructor(**options)) == there:
                return {self.name: name}
        raise InteropError(f"{self.configurable.__name__}.{self.parameter} has no name in the format: {there}")


def described(value: Any) -> Any:
    """Returns a value that is equal for equal functions, also for partial ones."""
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    function = getattr(value, "func", value)
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", repr(function))
    return (name, tuple(sorted(getattr(value, "keywords", {}).items())))


def _converted(to: Callable[[Any], Any], value: Any, name: str) -> Any:
    try:
        return to(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, InteropError):
            raise
        raise InteropError(f"config.json#{name} cannot be {value!r}") from None


def _same(value: Any, other: Any) -> bool:
    return value == other and type(value) in (type(other), int, float)
