"""Values in configuration text, and their conversion to text: literals, references, macros, constants, expressions."""

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import gin

from ml.config import gin_internals
from ml.config.signatures import Configurable


@dataclass(frozen=True, slots=True)
class Reference:
    """`@scope/Name`, the constructor, or `@scope/Name()`, its result.

    Attributes:
        scopes: The scopes that are added to the active scope at the call (rule 4).
        configurable: The configurable.
        evaluate: Whether the constructor is called.
    """

    scopes: tuple[str, ...]
    configurable: Configurable
    evaluate: bool = False


@dataclass(frozen=True, slots=True)
class Macro:
    """`%NAME`: a name that the configuration defines."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """`%NAME` of a registered constant, such as a dtype, an enum member or infinity."""

    name: str
    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Expression:
    """An arithmetic operation with one operand, `-%a`, or two, `%a * 4`."""

    operator: str
    operands: tuple[Any, ...]


class UnwritableError(ValueError):
    """A value that cannot be written as configuration text."""


_Enum = TypeVar("_Enum", bound=type[enum.Enum])
_constant_names: dict[tuple[type, Any], str] = {}


def register_constant(name: str, value: Any) -> None:
    """Makes a value readable and writable as `%name` in configurations.

    Args:
        name: The name, which can be registered once.
        value: The value, which must be hashable.
    """
    if _constant_names.setdefault((type(value), value), name) == name and name not in gin_internals.constants():
        gin.constant(name, value)


def register_enum(cls: _Enum) -> _Enum:
    """Makes the members of an enum readable and writable as `%ClassName.MEMBER`. Usable as a decorator."""
    for member in cls:
        register_constant(f"{cls.__module__}.{cls.__qualname__}.{member.name}", member)
    return cls


register_constant("math.inf", math.inf)
register_constant("math.minus_inf", -math.inf)
gin.constant("math.nan", math.nan)  # not equal to itself, so `to_text` handles it separately

LEFT_OUT = Constant("juniper.left_out", "juniper.left_out")
"""The value of an option that had no effect in a saved run. The run records that it was set, but not its value."""
gin.constant(LEFT_OUT.name, LEFT_OUT.value)


REMOVED = Constant("juniper.unset", "juniper.unset")
"""In place of a value: removes the earlier bindings of the parameter, or the entry."""
gin.constant(REMOVED.name, REMOVED.value)


class DictKeyError(ValueError):
    """A dict key that is not hashable or occurs twice."""


def unique_keys(items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Returns the dict of these items.

    Raises:
        DictKeyError: A key occurs twice or is not hashable.
    """
    made: dict[Any, Any] = {}
    for key, item in items:
        try:
            is_new = key not in made
        except TypeError:
            raise DictKeyError(f"{key!r} cannot be the key of a dict") from None
        if not is_new:
            raise DictKeyError(f"the dict has the key {to_text(key, lambda _: None)} twice")
        made[key] = item
    return made


def walk(value: Any):
    """Yields every node of a value, containers included, in order."""
    yield value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(key)
            yield from walk(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk(item)
    elif isinstance(value, Expression):
        for operand in value.operands:
            yield from walk(operand)


def substitute(value: Any, replace: Callable[[Any], Any]) -> Any:
    """Returns a copy of a value with `replace` applied to each leaf, in the same order.

    An expression counts as a leaf after its operands are replaced.

    Raises:
        DictKeyError: Two keys of a dict become equal.
    """
    if type(value) is dict:
        return unique_keys((substitute(key, replace), substitute(item, replace)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(substitute(item, replace) for item in value)
    if isinstance(value, Expression):
        value = Expression(value.operator, tuple(substitute(operand, replace) for operand in value.operands))
    return replace(value)


def short_name(configurable: "Configurable") -> str:
    """Returns the name of a configurable without its module."""
    return configurable.name


def to_text(
    value: Any,
    find: Callable[[Any], Reference | None],
    spell: Callable[["Configurable"], str] = short_name,
) -> str:
    """Returns the gin text that parses back to a value.

    Args:
        value: A literal, a `Reference`, `Macro`, `Constant` or `Expression`, or a Python object that represents one.
        find: Returns the reference to a configurable class or function, and None for any other value.
        spell: Returns the name of a configurable.

    Raises:
        UnwritableError: There is no such text.
    """
    if isinstance(value, Reference):
        name = "/".join((*value.scopes, spell(value.configurable)))
        return f"@{name}()" if value.evaluate else f"@{name}"
    if isinstance(value, Macro | Constant):
        return f"%{value.name}"
    if isinstance(value, Expression):
        return _expression_text(value, find)
    kind = type(value)
    if value is None or kind in (bool, int, str, bytes):
        return repr(value)
    if kind is float:
        return _float_text(value)
    if kind is list:
        return "[" + ", ".join(to_text(item, find, spell) for item in value) + "]"
    if kind is tuple:
        items = [to_text(item, find, spell) for item in value]
        return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
    if kind is dict:
        return "{" + ", ".join(f"{to_text(k, find, spell)}: {to_text(v, find, spell)}" for k, v in value.items()) + "}"
    reference = find(value)
    if reference is not None:
        return to_text(reference, find, spell)
    try:
        return "%" + _constant_names[kind, value]
    except (KeyError, TypeError):
        raise UnwritableError(
            f"{value!r} of type {kind.__module__}.{kind.__qualname__} cannot be written to a configuration; "
            "make it configurable or register it with ml.config.register_constant"
        ) from None


def _expression_text(expression: Expression, find: Callable[[Any], Reference | None]) -> str:
    level, operands = _level(expression), expression.operands
    if len(operands) == 1:
        return f"{expression.operator}{_operand_text(operands[0], level, find)}"
    # A power groups from the right and allows a sign on the right; the others group from the left.
    is_power = expression.operator == "**"
    left = _operand_text(operands[0], level + is_power, find)
    right = _operand_text(operands[1], 2 if is_power else level + 1, find)
    return f"{left} {expression.operator} {right}"


def _operand_text(operand: Any, level: int, find: Callable[[Any], Reference | None]) -> str:
    text = to_text(operand, find)
    return f"({text})" if _level(operand) < level else text


def _level(value: Any) -> int:
    """The precedence of a value: sums, products, signs, powers, everything else."""
    if isinstance(value, Expression):
        return 2 if len(value.operands) == 1 else {"+": 0, "-": 0, "**": 3}.get(value.operator, 1)
    return 2 if type(value) in (int, float) and math.copysign(1, value) < 0 else 4


def _float_text(value: float) -> str:
    if math.isnan(value):
        return "%math.nan"
    if math.isinf(value):
        return "%" + _constant_names[float, value]
    return repr(value)
