"""Building from a configuration: the values of constructors, and the children of modules.

`Build` is one build of one configuration: while it is active in a thread, every configurable
that is called in the thread gets its values from it.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any

import gin

from ml.config import gin_internals
from ml.config.built import Built
from ml.config.configurable import Configurable, active, constructed_by, holding_for, newest
from ml.config.copies import Copier
from ml.config.errors import ConfigError, Location, ParameterError, Problem
from ml.config.failures import describe_error, missing_attribute
from ml.config.garbage import no_garbage_collection
from ml.config.parameter_problems import at, cause_of, misfit_problem, missing_problem
from ml.config.plans import Call, Candidate, Plan, to_object
from ml.config.scopes import PathIndex, match
from ml.config.statements import Binding
from ml.config.suggestions import NO_SUGGESTIONS, SavedSuggestions, Suggestions, unbound
from ml.config.types import mismatch
from ml.config.values import Reference, substitute

_NOTHING: Mapping[str, Any] = {}
_DEEPEST = 100  # nested constructors; a deep model has twenty
_Here = tuple[list[str], tuple[str, ...], tuple[frozenset[str], ...]]  # a scope as gin's list, as a path, and reduced
_UNREPEATABLE = object()
_STAND_INS = {int: 1, float: 1.0, bool: False, str: ""}


class Build:
    """One build from a set of bindings.

    Args:
        bindings: All bindings, in order.
        keep_calls: Whether to record a `Call` for each construction.
        collect: Whether problems with parameters are collected in `problems` instead of raised.
    """

    def __init__(self, bindings: list[Binding], keep_calls: bool = False, collect: bool = False):
        self._by_configurable: dict[str, list[Binding]] = {}
        placed = [binding for binding in bindings if binding.parent is None]
        for binding in placed:
            self._by_configurable.setdefault(binding.configurable.selector, []).append(binding)
        self._index = PathIndex({binding.scope for binding in placed})
        self._plans: dict[tuple, Plan] = {}
        self._calling: list[Call] = []
        self._saved = SavedSuggestions(bindings)
        self._suggested: Suggestions = NO_SUGGESTIONS
        self._singletons: dict[tuple[str, ...], Any] = {}
        self.singletons_used: list[Binding] = []
        self._collect = collect
        self._unset: dict[Problem, list[tuple[str, ...]]] = {}
        self._misfits: dict[Problem, list[tuple[str, ...]]] = {}
        self._keep_calls = keep_calls
        self.calls: list[Call] = []
        self._made: dict[int, Call] = {}  # by the id of what was built
        self._called: set[Any] = set()  # the constructors called for the child in progress, and perhaps `_UNREPEATABLE`

    def __enter__(self) -> "Build":
        if active.build is not None:
            raise RuntimeError("this thread is already building a configuration")
        self._scopes = gin_internals.scope_stack()
        self._scopes.append([])
        self._here: _Here = (self._scopes[-1], (), ())
        active.build = self
        self._pause = no_garbage_collection()
        self._pause.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pause.__exit__(*exception)
        active.build = None
        self._scopes.pop()

    def child(self, name, constructor, args, kwargs, defaults, derived):
        """See the function `child`."""
        scope, path, reduced = outer = self._where()
        scope = [*scope, name]
        self._scopes.append(scope)
        self._here = (scope, (*path, name), self._index.below(reduced, name))
        try:
            built = constructed_by(constructor)
            if built is None:
                self._called.add(constructor if isinstance(constructor, FunctionType) else _UNREPEATABLE)
                return constructor(*args, **{**unbound(constructor, defaults, derived), **kwargs})
            self._suggested = self._suggestions((*path, name), built, defaults, derived)
            return newest(constructor)(*args, **kwargs)
        finally:
            self._suggested = NO_SUGGESTIONS
            self._scopes.pop()
            self._here = outer

    def children(self, names, constructor, args, kwargs, copier: Copier) -> dict[str, Any]:
        """See the function `children`."""
        made: dict[str, Any] = {}
        copiers: dict[Hashable, tuple[Callable[[], Any], Call | None]] = {}
        for name in names:
            kind = self._kind(name, constructor)
            if kind in copiers:
                copy, original = copiers[kind]
                made[name] = self._copied(name, copy(), original)
                continue
            outer, self._called, start = self._called, set(), len(self.calls)
            try:
                made[name] = self.child(name, constructor, args, kwargs, _NOTHING, _NOTHING)
                if kind is not None and self._is_repeatable(copier) and (copies := copier.copies_of(made[name])):
                    copiers[kind] = copies, _first(self.calls[start:])
            finally:
                self._called |= outer
        return made

    def _kind(self, name: str, constructor: Callable[..., Any]) -> Hashable:
        """A value that is equal for children that the same bindings reach; None for one that is not configurable."""
        built = constructed_by(constructor)
        if built is None:
            return None
        _, path, reduced = self._where()
        saved = self._suggestions((*path, name), built, _NOTHING, _NOTHING).saved
        return self._index.below(reduced, name), tuple(saved.items())

    def _is_repeatable(self, copier: Copier) -> bool:
        """True if the child that was just built has no part that a copy could lack."""
        return _UNREPEATABLE not in self._called and all(map(copier.is_repeatable, self._called))

    def _copied(self, name: str, component: Any, original: Call | None) -> Any:
        """Records the call of a copy, and returns the copy."""
        if original is not None:
            _, outer, _ = self._where()
            path = (*outer, name)
            suggestions = self._suggestions(path, original.info, _NOTHING, _NOTHING)
            inner = original.path[len(path) :]
            call = Call((*path, *inner), original.info, original.plan, original.parent, original.arguments, suggestions)
            call.unused, call.neutral, call.original = original.unused, original.neutral, original
            self.calls.append(call)
            self._made[id(component)] = call
        return component

    def _suggestions(self, path, built: Configurable, defaults: Mapping, derived: Mapping) -> Suggestions:
        """The suggestions of the running constructor to a child at `path`."""
        if not self._calling:
            return Suggestions(path, defaults, derived=derived)
        parent = self._calling[-1]
        place = path[len(parent.path) :]
        return Suggestions(place, defaults, self._saved.of(parent.info, place, built), derived)

    def _where(self) -> _Here:
        """The active scope as gin's list, as a path and as a reduced path, including scopes opened by other code."""
        scope = self._scopes[-1]
        if scope is self._here[0]:
            return self._here
        path = tuple(scope)
        return scope, path, self._index.reduce(path)

    def call(self, info: Configurable, plain: Callable[..., Any], args: tuple, kwargs: dict, skip: int = 0) -> Any:
        """Calls a constructor with configured values for the parameters that the caller does not pass.

        Args:
            info: The configurable.
            plain: The original constructor.
            args: The positional arguments of the caller.
            kwargs: The keyword arguments of the caller.
            skip: The number of leading arguments that are not parameters: 1 for `self`.
        """
        suggestions, self._suggested = self._suggested, NO_SUGGESTIONS
        _, path, reduced = self._where()
        plan = self._plans.get((info.selector, reduced)) or self._plan(info, reduced)
        self._called.add(info.target if plan.is_plain else _UNREPEATABLE)
        decided = kwargs
        if len(args) > skip:
            decided = {**dict(zip(info.positional, args[skip:], strict=False)), **kwargs}
        call = Call(path, info, plan, self._calling[-1] if self._calling else None, decided, suggestions)
        if self._keep_calls:
            self.calls.append(call)
        if len(self._calling) > _DEEPEST:
            self._endless()
        self._calling.append(call)
        try:
            made = self._construct(call, plain, args, {**self._values(call), **kwargs})
        finally:
            self._calling.pop()
        if plan.left_out:
            self._needed(call)
        if self._keep_calls:
            product = args[0] if skip else made
            self._made[id(product)] = call
            call.neutral = holding_for(info, product)
        return made

    def _values(self, call: Call) -> dict[str, Any]:
        """The values of the parameters that the caller does not pass.

        Precedence, from lowest to highest: saved defaults of the code, suggestions of the parent, saved suggestions,
        derived values, the imported layer, files and flags. The default in the code is below all of these and is not
        passed to the call.
        """
        plan, suggestions, decided = call.plan, call.suggestions, call.arguments
        values = {name: self._ready(candidate) for name, candidate in plan.weak.items() if name not in decided}
        values.update(suggestions.defaults)
        for name, binding in suggestions.saved.items():
            values[name] = self._make(binding)
        values.update(suggestions.derived)
        for name, candidate in plan.strong.items():
            if name not in decided and name not in plan.left_out:
                values[name] = self._ready(candidate)
        for name in decided.keys() & values.keys():
            del values[name]
        if plan.missing:
            self._missing(call, values)
        return values

    def _ready(self, candidate: Candidate) -> Any:
        return candidate.ready if candidate.is_ready else self._make(candidate.binding)

    def _construct(self, call: Call, plain: Callable[..., Any], args: tuple, values: dict[str, Any]) -> Any:
        """Runs the constructor, and turns its errors into problems of the configuration."""
        try:
            return plain(*args, **values)
        except ParameterError as error:
            self.parameter_problem(error.parameter, error.message)
            raise
        except ConfigError:
            raise
        except ValueError as error:
            problem = Problem(self._selected_by(), f"{call.info.name} cannot be built{at(call.path)}: {error}")
            raise ConfigError([*self.problems, problem]) from error
        except Exception as error:  # of any code, that of users among it
            if isinstance(error, TypeError):
                self._wrong_call(call, plain, args, values, error)
            if self.problems:
                raise  # it may follow from them
            raise ConfigError([self._failure(call, error)]) from error

    def _failure(self, call: Call, error: Exception) -> Problem:
        """Returns the problem for an error in a constructor: an incomplete component, or faulty code."""
        missing = missing_attribute(error)
        part = self._made.get(id(missing.owner)) if missing else None
        if missing is None or part is None:
            message = f"{call.info.name} cannot be built{at(call.path)}: {describe_error(error)}"
            return Problem(self._selected_by(), message)
        asks = call.info.name if missing.wanted_by is None else type(missing.wanted_by).__name__
        message = f"{part.info.name}{at(part.path)} has no `{missing.name}`, which {asks} needs"
        return Built(self.calls).problem(part.path, message)

    def _plan(self, info: Configurable, reduced: tuple[frozenset[str], ...]) -> Plan:
        plan = self._plans[info.selector, reduced] = self._planned(info, reduced, self._bindings_of(info))
        return plan

    def _bindings_of(self, info: Configurable) -> list[Binding]:
        return self._by_configurable.get(info.selector, [])

    @staticmethod
    def _planned(info: Configurable, reduced: tuple[frozenset[str], ...], bindings: list[Binding]) -> Plan:
        found: dict[str, list[Candidate]] = {}
        for binding in bindings:
            if (fit := match(binding.scope, reduced)) is not None:
                found.setdefault(binding.parameter, []).append(Candidate(binding, fit))
        return Plan(found, info)

    def _make(self, binding: Binding) -> Any:
        """A new Python object for a bound value; its evaluated references are built here."""
        products: list[Any] = []

        def leaf(node: Any) -> Any:
            if not isinstance(node, Reference) or not node.evaluate:
                return to_object(node)
            is_singleton = node.configurable.selector == "gin.singleton"
            products.append(self._singleton(node) if is_singleton else to_object(node)())
            return products[-1]

        made = substitute(binding.value, leaf)
        if products:
            self._check_products(binding, products)
        return made

    def _check_products(self, binding: Binding, products: list[Any]) -> None:
        """Checks a value with the results of its references, since the annotation of a factory can be incomplete."""
        remaining = iter(products)

        def leaf(node: Any) -> Any:
            return next(remaining) if isinstance(node, Reference) and node.evaluate else node

        spec = binding.configurable.spec(binding.parameter)
        wrong = mismatch(substitute(binding.value, leaf), spec.annotation) if spec else None
        if wrong:
            name = f"{binding.configurable.name}.{binding.parameter}"
            problem = Problem(binding.location, f"{name} {wrong}", binding.text(written=True))
            self._misfits.setdefault(problem, []).append(self._where()[1])
            raise ConfigError(self.problems)

    def _singleton(self, reference: Reference) -> Any:
        """The value of `@name/gin.singleton()`: the result of `name/gin.singleton.constructor`, once per build."""
        self._called.add(_UNREPEATABLE)
        if reference.scopes not in self._singletons:
            bindings = [b for b in self._by_configurable.get("gin.singleton", ()) if b.scope == reference.scopes]
            if not bindings:
                name = "/".join((*reference.scopes, "gin.singleton"))
                raise ConfigError(
                    [*self.problems, Problem(None, f"{name}.constructor must be set, and nothing sets it")]
                )
            self.singletons_used.append(bindings[-1])
            self._singletons[reference.scopes] = self._make(bindings[-1])()
        return self._singletons[reference.scopes]

    def parameter_problem(self, parameter: str, message: str) -> None:
        """Collects or raises a problem with a parameter of the innermost running constructor."""
        self._called.add(_UNREPEATABLE)
        if not self._calling:
            raise ParameterError(parameter, message)
        call = self._calling[-1]
        self._misfits.setdefault(misfit_problem(call, parameter, message), []).append(call.path)
        if not self._collect:
            raise ConfigError(self.problems)

    @property
    def problems(self) -> list[Problem]:
        """The problems with parameters, each once, with all places where it occurs."""
        return [
            Problem(problem.location, problem.message + at(*paths), problem.statement)
            for problem, paths in (self._unset or self._misfits).items()  # a misfit can follow from a stand-in
        ]

    def _missing(self, call: Call, values: dict[str, Any]) -> None:
        """Records required parameters without a value; a stand-in lets the build continue and find the others."""
        for name in call.plan.missing:
            candidates = call.plan.candidates.get(name)
            if name in call.arguments or (not candidates and values.get(name, gin.REQUIRED) is not gin.REQUIRED):
                continue
            problem = missing_problem(call, name, candidates[-1].binding if candidates else None)
            self._unset.setdefault(problem, []).append(call.path)
            self._called.add(_UNREPEATABLE)
            spec = call.info.spec(name)
            if not self._collect or spec is None or spec.annotation not in _STAND_INS:
                raise ConfigError(self.problems)
            values[name] = _STAND_INS[spec.annotation]

    def _needed(self, call: Call) -> None:
        """Records the options without a saved value that have an effect now."""
        for name in call.plan.left_out:
            if name not in call.arguments and name not in call.unused:
                problem = missing_problem(call, name, call.plan.candidates[name][-1].binding)
                self._unset.setdefault(problem, []).append(call.path)
                self._called.add(_UNREPEATABLE)
        if self._unset and not self._collect:
            raise ConfigError(self.problems)

    def unused(self, parameter: str, because: tuple[str, ...]) -> None:
        """Records that a parameter of the innermost running constructor has no effect, with the causes."""
        if self._calling:
            causes = tuple(cause_of(self._calling, name) for name in because)
            call = self._calling[-1]
            call.unused = {**call.unused, parameter: causes}

    @property
    def is_complete(self) -> bool:
        """True if all required parameters are set."""
        return not self._unset

    def _wrong_call(self, call: Call, plain, args: tuple, values: dict, error: TypeError) -> None:
        """Turns a call that does not fit the signature into a problem of the configuration; ignores other errors."""
        try:
            inspect.signature(plain).bind(*args, **values)
        except TypeError as mismatch:
            message = f"{call.info.name} cannot be built{at(call.path)}: {mismatch}"
            raise ConfigError([*self.problems, Problem(self._selected_by(), message)]) from error

    def _endless(self) -> None:
        """Reports infinite recursion of a constructor."""
        counts = Counter(call.info for call in self._calling)
        info = counts.most_common(1)[0][0]
        binding = next(
            (
                candidates[-1].binding
                for call in self._calling
                for candidates in call.plan.candidates.values()
                if isinstance(candidates[-1].binding.value, Reference)
                and candidates[-1].binding.value.configurable is info
            ),
            None,
        )
        message = f"{info.name} is built inside itself endlessly"
        where, text = (binding.location, binding.text(written=True)) if binding else (None, "")
        raise ConfigError([*self.problems, Problem(where, message, text)])

    def _selected_by(self) -> Location | None:
        """The place of the binding that selected the constructor being called, if one did."""
        call, parents = self._calling[-1], self._calling[-2::-1]
        for parent in parents[:1]:
            for candidate in parent.plan.strong.values():
                value = candidate.binding.value
                if isinstance(value, Reference) and value.configurable is call.info:
                    return candidate.binding.location
        return None


def _first(calls: list[Call]) -> Call | None:
    """The outermost of the calls that built a component, with the others as those inside it; None if not recorded."""
    for first in calls[:1]:
        first.inside = calls[1:]
        return first
    return None
