"""Operations on the earlier value of a key: setting and removing entries, extending and shortening lists."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import gin

from ml.config.configurable import reference_to
from ml.config.errors import Location, did_you_mean
from ml.config.signatures import EMPTY, Configurable
from ml.config.statements import Binding, Layer, State, Unset
from ml.config.types import describe
from ml.config.values import REMOVED, UnwritableError, substitute, to_text


class OperationProblem(ValueError):
    """An operation that the value does not support."""


class Key(NamedTuple):
    """One key of configuration text: `scope/Name.parameter`."""

    scope: tuple[str, ...]
    configurable: Configurable
    parameter: str

    def __str__(self) -> str:
        return "/".join((*self.scope, f"{self.configurable.name}.{self.parameter}"))

    def of(self, bindings: Iterable[Binding]) -> list[Binding]:
        """Returns the bindings of exactly this key."""
        return [b for b in bindings if (b.scope, b.configurable, b.parameter) == self and b.parent is None]


class Held(NamedTuple):
    """The value of a key before an operation, and its place, which is None for a default of the code."""

    value: Any
    location: Location | None = None


def held_by(bindings: list[Binding], key: Key) -> Held:
    """Returns the value of a key: explicit, else imported, else, without a scope, the default.

    Raises:
        OperationProblem: There is no value, or it is unknown.
    """
    own = [binding for binding in key.of(bindings) if not binding.requires]
    if own:
        last = max(own, key=lambda binding: (binding.layer.strength, binding.order))
        if last.is_left_out:
            raise OperationProblem(f"{key} has no saved value, since it had no effect in the saved run: set it in full")
        return Held(last.value, last.location)
    spec = key.configurable.spec(key.parameter)
    default = EMPTY if spec is None else spec.default
    if not key.scope and default is not EMPTY and default is not gin.REQUIRED:
        return Held(substitute(default, lambda leaf: reference_to(leaf) or leaf))
    raise OperationProblem(f"{key} has no earlier value to change{_near(key, bindings)}")


def unset_of(bindings: list[Binding], key: Key, layer: Layer, location: Location, order: int) -> Unset:
    """Returns the statement `key = %juniper.unset` with the explicit bindings that it removes.

    Args:
        bindings: The bindings before the statement.
        key: The key that it unsets.
        layer: The layer of the statement.
        location: The place of the statement.
        order: The order of the statement.

    Raises:
        OperationProblem: There is no binding to remove.
    """
    removed = [binding for binding in key.of(bindings) if binding.layer.explicit]
    if not removed:
        near = _near(key, bindings)
        raise OperationProblem(f"there is nothing to unset: no line before this one sets {key}{near}")
    states = (removed[-1].states[-1], State(REMOVED, order, layer, location))
    constructs = removed[-1].constructs
    return Unset(
        Binding(*key, REMOVED, REMOVED, layer, location, order, constructs=constructs, states=states), tuple(removed)
    )


def _near(key: Key, bindings: list[Binding]) -> str:
    return did_you_mean(str(key), [binding.key for binding in bindings if binding.layer.explicit])


def operate(held: Any, entries: tuple[Any, ...], operator: str, operand: Any, name: str) -> Any:
    """Returns the value after `name[entries] operator operand`, without changing `held`.

    Args:
        held: The value before.
        entries: The keys or indices in brackets, outermost first.
        operator: `=`, `+=` or `-=`.
        operand: The value on the right.
        name: The parameter, for messages.

    Raises:
        OperationProblem: An entry does not exist, or the value has no entries.
    """
    if not entries:
        return (_extended if operator == "+=" else _shortened)(held, operand, name)
    key, *deeper = entries
    if deeper or operator != "=":
        found = _find(held, key, name)
        inner = operate(held[found], tuple(deeper), operator, operand, f"{name}[{_text(key)}]")
        return _replaced(held, found, inner)
    if operand == REMOVED:
        return _removed(held, _find(held, key, name))
    if type(held) is dict:
        return _replaced(held, next((known for known in held if _same(known, key)), key), operand)
    return _replaced(held, _find(held, key, name), operand)


def _find(held: Any, key: Any, name: str) -> Any:
    """The key or index of an existing entry."""
    if type(held) is dict:
        for known in held:
            if _same(known, key):
                return known
        hint = did_you_mean(str(key), map(str, held))
        raise OperationProblem(f"{name} has no entry {_text(key)}{hint}")
    if type(held) not in (list, tuple):
        raise OperationProblem(f"{name} is {describe(held)}, which has no entries: set it in full")
    if type(key) is not int or not -len(held) <= key < len(held):
        raise OperationProblem(f"{name} has {len(held)} entries, and no entry [{_text(key)}]")
    return key % len(held)


def _replaced(held: Any, found: Any, item: Any) -> Any:
    if type(held) is dict:
        return {**held, found: item}
    return type(held)([*held[:found], item, *held[found + 1 :]])


def _removed(held: Any, found: Any) -> Any:
    if type(held) is dict:
        return {key: item for key, item in held.items() if key is not found}
    return type(held)([*held[:found], *held[found + 1 :]])


def _extended(held: Any, added: Any, name: str) -> Any:
    _check_lists(held, added, name)
    return type(held)([*held, *added])


def _shortened(held: Any, removed: Any, name: str) -> Any:
    _check_lists(held, removed, name)
    left = list(held)
    for item in removed:
        index = next((index for index, known in enumerate(left) if _same(known, item)), None)
        if index is None:
            raise OperationProblem(f"{name} has no entry {_text(item)} to remove: it is {_text(held)}")
        del left[index]
    return type(held)(left)


def _check_lists(held: Any, operand: Any, name: str) -> None:
    if type(held) is dict:
        raise OperationProblem(f"{name} is a dict: write {name}['key'] = value, or %juniper.unset as the value")
    if type(held) not in (list, tuple):
        raise OperationProblem(f"{name} is {describe(held)}, not a list: set it in full")
    if type(operand) not in (list, tuple):
        raise OperationProblem(f"{name} is a list: write the entries in brackets, [{_text(operand)}]")


def _same(one: Any, other: Any) -> bool:
    """Equality that separates True from 1."""
    if type(one) in (list, tuple) and type(other) is type(one):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is dict and type(other) is dict:
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other and (type(one) is bool) == (type(other) is bool)


def _text(value: Any) -> str:
    try:
        return to_text(value, reference_to)
    except UnwritableError:
        return repr(value)
