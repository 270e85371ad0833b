"""Nothing is silently ignored (rule 7): which bindings took effect, and why the others did not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ml.config.configurable import Configurable, reference_to
from ml.config.construction import Build
from ml.config.errors import Problem, did_you_mean
from ml.config.plans import Call
from ml.config.scopes import compress, parse_range, split_index
from ml.config.statements import Binding, Layer
from ml.config.types import takes_constructor
from ml.config.values import Reference, walk

_FAR = 3


@dataclass
class Effects:
    """What became of each binding in a build.

    Attributes:
        effective: it gave at least one parameter its value.
        left_out: it would have, but for a later binding (the value) that swapped the part it belongs to.
        idle: problems of the others.
        without_effect: all that are not replaced by a later binding of the same key, and not effective.
    """

    effective: set[Binding] = field(default_factory=set)
    left_out: dict[Binding, Binding] = field(default_factory=dict)
    idle: list[Problem] = field(default_factory=list)
    without_effect: list[Binding] = field(default_factory=list)


def effective_bindings(build: Build) -> set[Binding]:
    """The explicit and imported bindings that gave some parameter its value in a build that kept its calls."""
    effective = set(build.singletons_used)
    for plan, decided in _kinds_of_call(build.calls):
        effective |= {c.binding for p, c in plan.strong.items() if p not in decided}
    return effective


def find_effects(bindings: list[Binding], build: Build, rebuild: Callable[[list[Binding]], Build]) -> Effects:
    """Accounts for every binding of a build.

    Args:
        bindings: all of them, in order.
        build: the finished build, which kept its calls.
        rebuild: builds again from fewer bindings, ignoring what goes wrong.
    """
    effects = Effects(effective_bindings(build))
    replaced = _replaced_by_later(bindings)
    accounted = effects.effective | replaced
    effects.without_effect = [b for b in bindings if b not in accounted and b.layer >= Layer.IMPORTED]
    unused = [b for b in effects.without_effect if b.layer.explicit and not (b.requires or b.is_left_out)]
    if unused:
        effects.left_out = _left_out(bindings, unused, effects.effective, rebuild)
        place = _Places(build)
        for binding in unused:
            if binding not in effects.left_out:
                problem = Problem(binding.location, place.why_idle(binding), binding.text(written=True))
                effects.idle.append(problem)
    return effects


def _kinds_of_call(calls: list[Call]):
    """Calls that cannot differ in which bindings they use, once each."""
    kinds = {(id(c.plan), frozenset(c.arguments)): c for c in calls}
    return [(c.plan, c.arguments) for c in kinds.values()]


def _replaced_by_later(bindings: list[Binding]) -> set[Binding]:
    last: dict[tuple, Binding] = {}
    for binding in bindings:
        last[binding.identity] = binding
    return {binding for binding in bindings if last[binding.identity] is not binding}


def _left_out(
    bindings: list[Binding],
    unused: list[Binding],
    effective: set[Binding],
    rebuild: Callable[[list[Binding]], Build],
) -> dict[Binding, Binding]:
    """Unused bindings that a swap of a part, set later, made useless: without the swap they take effect."""
    swaps = [b for b in bindings if b in effective and b.constructs and b.settled > min(u.order for u in unused)]
    found: dict[Binding, Binding] = {}
    trials = [[swap] for swap in swaps] + ([swaps] if len(swaps) > 1 else [])
    for removed in trials:
        waiting = [u for u in unused if u not in found and any(swap.settled > u.order for swap in removed)]
        if waiting:
            revived = effective_bindings(rebuild(_without(removed, bindings)))
            for binding in waiting:
                later = [swap for swap in removed if swap.settled > binding.order]
                if binding in revived and later:
                    found[binding] = later[-1]
    return found


def _without(swaps: list[Binding], bindings: list[Binding]) -> list[Binding]:
    """The bindings as they were before the swaps."""
    return [
        replace(b, value=b.states[-2].value) if b in swaps else b for b in bindings if b not in swaps or b.states[1:]
    ]


class _Places:
    """What was built where, to say why a binding reached nothing."""

    def __init__(self, build: Build):
        self._calls = build.calls
        self._components = {component for call in build.calls for component in call.path}
        self._paths: dict[str, list[tuple[str, ...]]] = {}
        for call in build.calls:
            self._paths.setdefault(call.info.selector, []).append(call.path)

    def why_idle(self, binding: Binding) -> str:
        """Why a binding took no effect, in words."""
        matched = [(c.plan, c.arguments) for c in self._calls if self._reached(c, binding)]
        if matched:
            return self._why_beaten(binding, matched)
        for pattern in binding.scope:
            if not self._entered(pattern):
                known = sorted({_generalized(c) for c in self._components} | self._components, key=len)
                return f"no module ever enters the scope {pattern!r}{did_you_mean(pattern, known)}"
        name = binding.configurable.name
        if binding.configurable.selector not in self._paths:
            return f"{name} is not built{self._built_instead(binding)}"
        places = compress([p for p in self._paths[binding.configurable.selector] if p])
        shown = ", ".join(places[:3]) + (" ..." if len(places) > 3 else "")
        return f"no {name} is built in the scope {'/'.join(binding.scope)!r}; it is built at {shown or 'the root'}"

    @staticmethod
    def _reached(call: Call, binding: Binding) -> bool:
        found = call.plan.candidates.get(binding.parameter, ()) if call.info is binding.configurable else ()
        return any(candidate.binding is binding for candidate in found)

    def _why_beaten(self, binding: Binding, matched: list) -> str:
        name = f"{binding.configurable.name}.{binding.parameter}"
        if all(binding.parameter in arguments for _, arguments in matched):
            return f"{name} is decided by the parent, which always passes it: it cannot be bound"
        winners = {plan.candidates[binding.parameter][-1].binding: None for plan, _ in matched}
        stronger = ", ".join(f"{w.key} ({w.location})" for w in winners if w is not binding)
        return f"it is shadowed everywhere, by {stronger}"

    def _entered(self, pattern: str) -> bool:
        span = parse_range(pattern)
        if pattern in self._components or span is None:
            return pattern in self._components
        indexed = [split_index(component) for component in self._components]
        return any(i and i[0] == span.stem and span.first <= i[1] <= span.last for i in indexed)

    def _built_instead(self, binding: Binding) -> str:
        """Names what stands in the place that looks made for it: by the name of the place, else by the module."""
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


def _distance(found: Configurable | None, wanted: Configurable) -> int:
    """0 for two of one module, 1 for two of one package that a parent calls alike, 2 for others of one package."""
    if found is None:
        return _FAR
    if found.selector.rpartition(".")[0] == wanted.selector.rpartition(".")[0]:
        return 0
    if found.package != wanted.package:
        return _FAR
    return 1 if found.positional == wanted.positional else 2


def _constructors(call: Call) -> Iterator[tuple[str, Configurable | None, str]]:
    """The parameters of a call that take a constructor: name, what they hold, and who says so in words."""
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
