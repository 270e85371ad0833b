"""Parameters that change no result of a run: their declaration, and the parts of a build that inherit it.

A part that only neutral parameters hold is neutral with everything in it, except for what its class excepts.
"""

from collections.abc import Iterable
from typing import Any

from ml.config.configurable import candidates, declared_neutral, reference_to
from ml.config.plans import Call
from ml.config.signatures import Configurable, Neutral
from ml.config.statements import UNSET
from ml.config.values import Reference, substitute, walk


def neutrality(info: Configurable, parameter: str) -> Neutral | None:
    """Returns the declaration of a parameter that changes no result, or None if it changes the result."""
    declared = declared_neutral(info)
    return declared if isinstance(declared, Neutral) else declared.get(parameter)


def is_neutral(key: str) -> bool:
    """Returns whether a parameter, such as "Mesh.tensor", changes no result of any run; see `configurable`."""
    name, _, parameter = key.rpartition(".")
    found = [neutrality(info, parameter) for info in candidates(name)] if name else []
    return bool(found) and all(one is not None and one.only_if is None for one in found)


def is_declared_neutral(name: str, parameter: str) -> bool:
    """Returns whether a parameter of a configurable is declared to change no result, even if under a condition."""
    return any(neutrality(info, parameter) is not None for info in candidates(name))


class NeutralParts:
    """Values of a build that change no result.

    Args:
        calls: The recorded calls, each parent before its children.
    """

    def __init__(self, calls: Iterable[Call]):
        self._inherits: dict[Call, bool] = {}
        for call in calls:
            self._inherits[call] = call.parent is not None and self._is_held_by_neutral(call, call.parent)

    def contains(self, call: Call, parameter: str) -> bool:
        """Returns whether the value of a parameter changes no result in this build."""
        if (declared := neutrality(call.info, parameter)) is not None:
            return declared.only_if is None or parameter in call.neutral
        of_class = declared_neutral(call.info)
        is_excepted = not isinstance(of_class, Neutral) and parameter in of_class
        return not is_excepted and self._inherits.get(call, False)

    def _is_held_by_neutral(self, call: Call, parent: Call) -> bool:
        """Returns whether only neutral parameters of its parent hold a part, or a neutral parent builds it."""
        holders = [spec.name for spec in parent.parameters if _holds(parent, spec.name, call.info)]
        if holders:
            return all(self.contains(parent, name) for name in holders)
        return isinstance(declared_neutral(parent.info), Neutral) or self._inherits.get(parent, False)


def _holds(call: Call, parameter: str, part: Configurable) -> bool:
    nodes = walk(_value(call, parameter))
    return any(isinstance(node, Reference) and node.configurable is part for node in nodes)


def _value(call: Call, parameter: str) -> Any:
    """The value in effect, with references for constructors."""
    if parameter in call.arguments or parameter in call.suggestions.derived:
        values = call.arguments if parameter in call.arguments else call.suggestions.derived
        return _as_references(values[parameter])
    if parameter in call.plan.strong:
        return call.plan.strong[parameter].binding.value
    if (suggested := call.suggestions.value(parameter)) is not UNSET:
        return _as_references(suggested)
    if parameter in call.plan.weak:
        return call.plan.weak[parameter].binding.value
    spec = call.info.spec(parameter)
    return None if spec is None else _as_references(spec.default)


def _as_references(value: Any) -> Any:
    return substitute(value, lambda leaf: reference_to(leaf) or leaf)
