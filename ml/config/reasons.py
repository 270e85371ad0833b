"""Reasons why a binding has no effect, for messages, and whether its author could have avoided it (rule 7)."""

from collections.abc import Iterator
from typing import NamedTuple

from ml.config.configurable import Configurable, reference_to
from ml.config.construction import Build
from ml.config.copies import all_calls
from ml.config.errors import did_you_mean
from ml.config.plans import Call, Cause
from ml.config.scopes import compress, parse_range, split_index
from ml.config.statements import UNSET, Binding
from ml.config.types import takes_constructor
from ml.config.values import Reference, to_text, walk

_FAR = 3


class Obstacle(NamedTuple):
    """The reason why a binding has no effect at one kind of place. Exactly one attribute is set.

    Attributes:
        decided: The parent passes the parameter.
        shadow: The binding that takes precedence.
        causes: The parameters that disable this one.
    """

    decided: bool = False
    shadow: Binding | None = None
    causes: tuple[Cause, ...] = ()

    def excuse(self, binding: Binding) -> Binding | None:
        """Returns the binding of a later source that is the obstacle, unknown to the author of `binding`, or None."""
        if self.shadow is not None:
            is_later = self.shadow.order > binding.order and self.shadow.location.source != binding.location.source
            return self.shadow if is_later else None
        causes = [cause.binding for cause in self.causes if cause.binding is not None]
        last = max(causes, key=lambda cause: cause.settled, default=None)
        is_later = last is not None and last.settled > binding.order and _decided_in(last) != binding.location.source
        return last if is_later else None


def _decided_in(binding: Binding) -> str:
    """The file or flag whose statement decided the value of a binding."""
    return (binding.location.via or binding.location).source


class Places:
    """The components of a build by place, to explain why a binding has no effect.

    Args:
        build: The finished build, which recorded its calls.
    """

    def __init__(self, build: Build):
        self._calls = build.calls
        self._components = {component for call in build.calls for component in call.path}
        self._built = {call.info.selector for call in build.calls}
        self._kinds: dict[str, list[Call]] = {}
        for call in kinds_of_call(build.calls):
            self._kinds.setdefault(call.info.selector, []).append(call)

    def obstacles(self, binding: Binding) -> list[Obstacle]:
        """Returns the obstacle at each kind of place that a binding matches; empty if it matches none."""
        found = []
        for call in self._kinds.get(binding.configurable.selector, ()):
            candidates = call.plan.candidates.get(binding.parameter, [])
            if any(candidate.binding is binding for candidate in candidates):
                winner = candidates[-1].binding
                if binding.parameter in call.arguments:
                    found.append(Obstacle(decided=True))
                elif winner is not binding:
                    found.append(Obstacle(shadow=winner))
                else:
                    found.append(Obstacle(causes=call.unused[binding.parameter]))
        return found

    def why_idle(self, binding: Binding) -> str:
        """Returns the message that explains why a binding has no effect."""
        if obstacles := self.obstacles(binding):
            return _why_beaten(binding, obstacles)
        for pattern in binding.scope:
            if not self._entered(pattern):
                known = sorted({_generalized(c) for c in self._components} | self._components, key=len)
                return f"there is no scope {pattern!r} in the model{did_you_mean(pattern, known)}"
        name = binding.configurable.name
        if binding.configurable.selector not in self._built:
            return f"{name} is not built{self._built_instead(binding)}"
        here = [c.path for c in all_calls(self._calls) if c.info.selector == binding.configurable.selector]
        places = compress([path for path in here if path])
        shown = ", ".join(places[:3]) + (" ..." if len(places) > 3 else "")
        return f"no {name} is built in the scope {'/'.join(binding.scope)!r}; it is built at {shown or 'the root'}"

    def _entered(self, pattern: str) -> bool:
        span = parse_range(pattern)
        if pattern in self._components or span is None:
            return pattern in self._components
        indexed = [split_index(component) for component in self._components]
        return any(i and i[0] == span.stem and span.first <= i[1] <= span.last for i in indexed)

    def _built_instead(self, binding: Binding) -> str:
        """The binding that selects another component in the most likely place, by parameter name, else by module."""
        wanted = binding.configurable
        nearest: list[tuple[tuple[bool, int], str]] = []
        for call in self._calls:
            for parameter, found, where in _constructors(call):
                named_alike = parameter.replace("_", "") in wanted.name.lower()
                distance = _distance(found, wanted)
                if named_alike or distance < _FAR:
                    value, selected = (f"@{found.name}", found.name + " instead") if found else ("None", "nothing")
                    text = f"{call.info.name}.{parameter} = {value}{where} selects {selected}"
                    nearest.append(((not named_alike, distance), text))
        return f": {min(nearest, key=lambda pair: pair[0])[1]}" if nearest else ": nothing selects it"


def kinds_of_call(calls: list[Call]) -> list[Call]:
    """Returns one call for each group of calls that use the same bindings."""
    return list({(id(c.plan), frozenset(c.arguments), frozenset(c.unused)): c for c in calls}.values())


def _why_beaten(binding: Binding, obstacles: list[Obstacle]) -> str:
    name = f"{binding.configurable.name}.{binding.parameter}"
    if all(obstacle.decided for obstacle in obstacles):
        return f"{name} cannot be bound: the parent always passes it"
    shadows = dict.fromkeys(obstacle.shadow for obstacle in obstacles if obstacle.shadow is not None)
    causes = dict.fromkeys(_set_so(cause) for obstacle in obstacles for cause in obstacle.causes)
    reasons = []
    if shadows:
        reasons.append("it is overridden everywhere by " + ", ".join(f"{b.key} ({b.location})" for b in shadows))
    if causes:
        reasons.append(f"{name} has no effect where {' and '.join(causes)}")
    return "; ".join(reasons)


def _set_so(cause: Cause) -> str:
    if cause.binding is not None:
        return f"{cause.binding.text()} ({cause.binding.location})"
    if cause.default is UNSET:
        return f"the parent determines {cause.name}"
    return f"{cause.name} = {to_text(cause.default, reference_to)} (its default)"


def _distance(found: Configurable | None, wanted: Configurable) -> int:
    """0 in the same module, 1 in the same package with the same positional parameters, 2 in the same package."""
    if found is None:
        return _FAR
    if found.selector.rpartition(".")[0] == wanted.selector.rpartition(".")[0]:
        return 0
    if found.package != wanted.package:
        return _FAR
    return 1 if found.positional == wanted.positional else 2


def _constructors(call: Call) -> Iterator[tuple[str, Configurable | None, str]]:
    """The parameters of a call that take a constructor: name, value, and the source of the value as text."""
    for spec in call.parameters:
        name = spec.name
        if name in call.arguments:
            continue
        candidates = call.plan.candidates.get(name)
        value = candidates[-1].binding.value if candidates else call.suggestions.defaults.get(name, spec.default)
        where = f" ({candidates[-1].binding.location})" if candidates else " (its default)"
        held = [node if isinstance(node, Reference) else reference_to(node) for node in walk(value)]
        for reference in held:
            if reference is not None or (value is None and takes_constructor(spec.annotation)):
                yield name, reference.configurable if reference else None, where


def _generalized(component: str) -> str:
    indexed = split_index(component)
    return f"{indexed[0]}0" if indexed else component
