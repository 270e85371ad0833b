"""Build with the components that later statements replaced, so that the options of these take effect (rule 7)."""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ml.config.configurable import Configurable, reference_to
from ml.config.construction import Build
from ml.config.plans import Call, Plan
from ml.config.scopes import match
from ml.config.statements import Binding, Unset
from ml.config.values import Reference, walk

Moments = tuple[int, ...]


class RewoundBuild(Build):
    """A build with the constructors that were selected at the time of certain statements.

    One build serves all statements: a component is built again only if its constructor differs between two of them.

    Args:
        bindings: all of them, in order.
        moments: the orders of the statements, and of the last ones of files and flags.
        unset: statements that removed others, which are not among the bindings.
    """

    def __init__(self, bindings: list[Binding], moments: set[int], unset: Sequence[Unset] = ()):
        self._ended = {binding: statement.binding.order for statement in unset for binding in statement.removed}
        self._removals = [statement.binding for statement in unset]
        super().__init__([*bindings, *self._ended], keep_calls=True, collect=True)
        self._choices = {(b.configurable, b.parameter) for b in (*bindings, *self._ended) if _chooses(b)}
        self._moments: Moments = tuple(sorted(moment for moment in moments if unset or moment < self._last_swap()))
        self._plans_at: dict[int, dict[tuple, Plan]] = {}
        self._plans_now: dict[tuple, Plan] = {}
        self._swapped_at: dict[tuple, list[int]] = {}
        self._earlier: dict[tuple[Binding, int], Binding | None] = {}
        self._original: dict[Binding, Binding] = {}
        self._calls_at: dict[Moments, list[Call]] = {}
        self._singletons_at: list[tuple[Binding, Moments, Call]] = []

    @property
    def differs(self) -> bool:
        """True if a constructor was replaced after one of the moments: the build differs from the final one."""
        return bool(self._moments)

    def _last_swap(self) -> int:
        """The order of the last statement that selects a constructor: the build after it is the final one."""
        swaps = [
            binding for bindings in self._by_configurable.values() for binding in bindings if self._is_swap(binding)
        ]
        return max((state.order for binding in swaps for state in binding.states), default=-1)

    def call(self, info: Configurable, plain: Callable[..., Any], args: tuple, kwargs: dict, skip: int = 0) -> Any:
        """Calls a constructor once for each group of moments with equal components. Returns the latest result."""
        outer, suggested = (self._moments, self._plans, self.calls), self._suggested
        *earlier, latest = self._groups(info, self._where()[2])
        try:
            for moments in earlier:
                spare = (object.__new__(type(args[0])), *args[1:]) if skip else args
                self._enter(moments, suggested)
                with contextlib.suppress(Exception):  # errors of an earlier state do not count
                    super().call(info, plain, spare, kwargs, skip)
            self._enter(latest, suggested)
            return super().call(info, plain, args, kwargs, skip)
        finally:
            self._moments, self._plans, self.calls = outer

    def children(self, names, constructor, args, kwargs, copier) -> dict[str, Any]:
        """Builds each child: at some moments equal children had different components."""
        return {name: self.child(name, constructor, args, kwargs, {}, {}) for name in names}

    def _enter(self, moments: Moments, suggested: Any) -> None:
        self._moments, self._suggested = moments, suggested
        self._plans = self._plans_at.setdefault(moments[0], {})
        self.calls = self._calls_at.setdefault(moments, [])

    def _groups(self, info: Configurable, reduced: tuple[frozenset[str], ...]) -> list[Moments]:
        """The moments, in order, in groups within which no statement selects a constructor for this place."""
        key = (info.selector, reduced)
        if key not in self._swapped_at:
            reaching = [
                b for b in super()._bindings_of(info) if self._is_swap(b) and match(b.scope, reduced) is not None
            ]
            orders = {state.order for binding in reaching for state in binding.states}
            self._swapped_at[key] = sorted(orders | {self._ended[b] for b in reaching if b in self._ended})
        groups: dict[int, list[int]] = {}
        for moment in self._moments:
            groups.setdefault(bisect_right(self._swapped_at[key], moment), []).append(moment)
        return [tuple(group) for group in groups.values()]

    def _is_swap(self, binding: Binding) -> bool:
        return binding.layer.explicit and (binding.configurable, binding.parameter) in self._choices

    def _bindings_of(self, info: Configurable) -> list[Binding]:
        moment = self._moments[0]
        alive = [b for b in super()._bindings_of(info) if self._is_alive(b, moment)]
        then = [self._at(binding, moment) if self._is_swap(binding) else binding for binding in alive]
        return [binding for binding in then if binding is not None]

    def _is_alive(self, binding: Binding, moment: int) -> bool:
        return binding not in self._ended or (self._is_swap(binding) and moment < self._ended[binding])

    def _bindings_now(self, info: Configurable) -> list[Binding]:
        """The bindings of the whole configuration, including the statements that unset something."""
        kept = [binding for binding in super()._bindings_of(info) if binding not in self._ended]
        return [*kept, *(binding for binding in self._removals if binding.configurable is info)]

    def _at(self, binding: Binding, moment: int) -> Binding | None:
        """The binding as it was at a moment; None if it had no value yet."""
        if binding.settled <= moment:
            return binding
        if (binding, moment) not in self._earlier:
            states = tuple(state for state in binding.states if state.order <= moment)
            then = replace(binding, value=states[-1].value, states=states) if states else None
            self._earlier[binding, moment] = then
            if then is not None:
                self._original[then] = binding
        return self._earlier[binding, moment]

    def _singleton(self, reference: Reference) -> Any:
        made = super()._singleton(reference)
        named = [b for b in self._by_configurable["gin.singleton"] if b.scope == reference.scopes]
        self._singletons_at.append((named[-1], self._moments, self._calling[-1]))
        return made

    def revived(self, unused: set[Binding], built: set[tuple]) -> dict[Binding, Binding]:
        """Returns the bindings that take effect in a replaced component, with the binding that replaced it.

        Args:
            unused: those that are asked about; each may have taken effect at any moment since it was read.
            built: the place and the configurable of everything that is built when nothing is taken back.
        """
        found: dict[Binding, Binding] = {}
        for moments, calls in self._calls_at.items():
            for call in calls:
                if (call.path, call.info.selector) in built:
                    continue
                for binding in self._in_effect(call):
                    if binding in unused and binding not in found and binding.order <= moments[-1]:
                        found[binding] = self._swap(_holders(call), call.info, binding)
        for binding, moments, call in self._singletons_at:
            if binding in unused and binding not in found and binding.order <= moments[-1]:
                found[binding] = self._swap([*_holders(call), call], binding.configurable, binding)
        return found

    def _in_effect(self, call: Call) -> Iterator[Binding]:
        for parameter, candidates in call.plan.candidates.items():
            if parameter not in call.arguments and parameter not in call.unused:
                required = [candidate for candidate in candidates if candidate.binding.requires]
                for candidate in {candidates[-1], *required}:
                    yield self._original.get(candidate.binding, candidate.binding)

    def _swap(self, holders: list[Call], built: Configurable, binding: Binding) -> Binding:
        """The outermost later binding that replaced a component or one that encloses it.

        Args:
            holders: The calls that enclose the component, outermost first.
            built: The component.
            binding: Its option.
        """
        later, related = [], []
        for depth, holder in enumerate(holders):
            inside = {built, *(inner.info for inner in holders[depth + 1 :])}
            for parameter, candidates in self._plan_now(holder).candidates.items():
                now = candidates[-1].binding
                if self._is_swap(now) and now.settled > binding.order:
                    later.append(now)
                    then = inside & _held(holder, parameter)
                    if then:
                        related.append(now)
                    if then - _references(now.value):
                        return now
        return [*self._swaps_after(binding), *later, *related][-1]

    def _swaps_after(self, binding: Binding) -> list[Binding]:
        kept = [b for bindings in self._by_configurable.values() for b in bindings if b not in self._ended]
        swaps = [b for b in (*kept, *self._removals) if self._is_swap(b) and b.settled > binding.order]
        return sorted(swaps, key=lambda b: b.settled)

    def _plan_now(self, call: Call) -> Plan:
        """The plan of the whole configuration for the place of a call."""
        key = (call.info.selector, self._index.reduce(call.path))
        if key not in self._plans_now:
            self._plans_now[key] = self._planned(call.info, key[1], self._bindings_now(call.info))
        return self._plans_now[key]


def _chooses(binding: Binding) -> bool:
    """True if a binding selects constructors or their results, alone or in a list or dict."""
    return binding.constructs or any(_references(state.value) for state in binding.states)


def _held(call: Call, parameter: str) -> set[Configurable]:
    """The configurables that a parameter of a call refers to."""
    candidates, spec = call.plan.candidates.get(parameter), call.info.parameters.get(parameter)
    return _references(candidates[-1].binding.value if candidates else spec and spec.default)


def _references(value: Any) -> set[Configurable]:
    nodes = [node if isinstance(node, Reference) else reference_to(node) for node in walk(value)]
    return {node.configurable for node in nodes if node is not None}


def _holders(call: Call) -> list[Call]:
    """The calls that enclose a call, outermost first."""
    holders: list[Call] = []
    holder = call.parent
    while holder is not None:
        holders.insert(0, holder)
        holder = holder.parent
    return holders
