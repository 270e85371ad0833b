"""Defaults that parents suggest to their children (rule 5), from the code and from a saved run (rule 9)."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml.config.configurable import Configurable
from ml.config.scopes import matches
from ml.config.statements import UNSET, Binding, Layer

_NOTHING: Mapping[str, Any] = {}


class Suggestions:
    """Values that one parent suggests to one child for parameters that it does not pass.

    Attributes:
        place: The path of the child below its parent.
        defaults: The suggestions in the parent's code.
        saved: The saved suggestions of a run as bindings, by parameter; they override `defaults`.
        derived: The values derived from the parent's own parameters; they override both.
    """

    __slots__ = ("defaults", "derived", "place", "saved")

    def __init__(
        self,
        place: tuple[str, ...] = (),
        defaults: Mapping[str, Any] = _NOTHING,
        saved: Mapping[str, Binding] = _NOTHING,
        derived: Mapping[str, Any] = _NOTHING,
    ):
        self.place = place
        self.defaults = defaults
        self.saved = saved
        self.derived = derived

    def value(self, parameter: str) -> Any:
        """Returns the suggested value of a parameter without derived ones, or `UNSET`."""
        saved = self.saved.get(parameter)
        return self.defaults.get(parameter, UNSET) if saved is None else saved.value


NO_SUGGESTIONS = Suggestions()


class SavedSuggestions:
    """The suggestions in a saved run. Each applies only to children of its parent's type at its place.

    Args:
        bindings: The bindings of all layers; those of `Layer.PARENT` are kept.
    """

    def __init__(self, bindings: Iterable[Binding]):
        self._by_types: dict[tuple[str, str], list[Binding]] = {}
        for binding in bindings:
            if binding.layer is Layer.PARENT and binding.parent is not None:
                types = (binding.parent.selector, binding.configurable.selector)
                self._by_types.setdefault(types, []).append(binding)
        self._found: dict[tuple, Mapping[str, Binding]] = {}

    def of(self, parent: Configurable, place: tuple[str, ...], child: Configurable) -> Mapping[str, Binding]:
        """Returns the bindings, by parameter, for a child at `place` below a parent."""
        bindings = self._by_types.get((parent.selector, child.selector))
        if not bindings:
            return _NOTHING
        key = (parent.selector, place, child.selector)
        if key not in self._found:
            self._found[key] = {b.parameter: b for b in bindings if _is_at(place, b.scope)}
        return self._found[key]


def _is_at(place: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return len(place) == len(patterns) and all(map(matches, patterns, place))


def unbound(constructor: Any, defaults: Mapping, derived: Mapping, bound: Mapping = _NOTHING) -> dict[str, Any]:
    """The suggestions of a parent that neither gin nor a `functools.partial` of the constructor overrides."""
    said = {**getattr(constructor, "keywords", _NOTHING), **bound}
    return {key: value for key, value in {**defaults, **derived}.items() if key not in said}
