"""Building from a configuration: the values of constructors, and the children of modules.

A module calls `child`. `Build` is one build of one configuration: while it is active in a thread, every configurable
that is called in the thread gets its values from it.
"""

import gc
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gin

from ml.config import gin_internals
from ml.config.built import Built
from ml.config.configurable import Configurable, active, constructed_by, find, newest
from ml.config.errors import ConfigError, Location, Problem
from ml.config.failures import describe_error, missing_attribute
from ml.config.plans import Call, Candidate, Cause, Plan, to_object
from ml.config.scopes import PathIndex, compress, match
from ml.config.statements import UNSET, Binding
from ml.config.suggestions import NO_SUGGESTIONS, SavedSuggestions, Suggestions
from ml.config.types import mismatch
from ml.config.values import Reference, substitute

_Product = TypeVar("_Product")
_NOTHING: Mapping[str, Any] = {}
_DEEPEST = 100  # nested constructors; a deep model has twenty
_Here = tuple[list[str], tuple[str, ...], tuple[frozenset[str], ...]]  # a scope as gin's list, as a path, and reduced
_STAND_INS = {int: 1, float: 1.0, bool: False, str: ""}


class ParameterError(ValueError):
    """A parameter of a configurable has an invalid value."""

    def __init__(self, parameter: str, message: str):
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter
        self.message = message

    def __reduce__(self):
        return type(self), (self.parameter, self.message)


def child(
    name: str,
    constructor: Callable[..., _Product],
    *args: Any,
    defaults: Mapping[str, Any] = _NOTHING,
    derived: Mapping[str, Any] = _NOTHING,
    **kwargs: Any,
) -> _Product:
    """Builds a child inside the scope `name`, the attribute to which it is assigned.

    Args:
        name: The scope.
        constructor: The constructor of the child.
        args: With `kwargs`, the values that the parent determines (shapes). Binding one of these is an error.
        defaults: Values that replace the child's own defaults. A binding overrides them.
        derived: Like `defaults`, for values that follow from the parent's own parameters, and so are not saved.
        kwargs: See `args`.

    Returns:
        The child.
    """
    build = active.build
    if build is not None:
        return build.child(name, constructor, args, kwargs, defaults, derived)
    info = find(constructor)
    bound = gin.get_bindings(info.selector, resolve_references=False) if info and (defaults or derived) else _NOTHING
    return constructor(*args, **{**_suggested(constructor, defaults, derived, bound), **kwargs})


def _suggested(constructor: Any, defaults: Mapping, derived: Mapping, bound: Mapping = _NOTHING) -> dict[str, Any]:
    """The suggestions of a parent that neither gin nor a `functools.partial` of the constructor overrides."""
    said = {**getattr(constructor, "keywords", _NOTHING), **bound}
    return {key: value for key, value in {**defaults, **derived}.items() if key not in said}


def require(condition: bool, parameter: str, message: str) -> None:
    """Checks a parameter in its constructor. The error names the binding that set it.

    While a configuration is being checked, errors are collected and construction continues.

    Example: `require(num_heads > 0, "num_heads", f"must be positive, not {num_heads}")`.

    Args:
        condition: Whether the value is valid.
        parameter: The name of the parameter.
        message: The message, as text that follows the parameter's name.

    Raises:
        ParameterError: The condition is false, outside a build.
        ConfigError: The condition is false, inside a build.
    """
    if condition:
        return
    if active.build is None:
        raise ParameterError(parameter, message)
    active.build.parameter_problem(parameter, message)


def unused(condition: bool, parameter: str, *because: str) -> None:
    """Declares that a parameter of the running constructor has no effect if a condition holds.

    If it has no effect anywhere, binding it is an error, unless a later source set the parameter that disables it.

    Example: `unused(mlp is None, "mlp_norm", "mlp")`.

    Args:
        condition: Whether the parameter has no effect.
        parameter: The name of the parameter.
        because: The parameters, of this constructor or of an enclosing one, whose values disable it.
    """
    if condition and active.build is not None:
        active.build.unused(parameter, because)


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

    def __enter__(self) -> "Build":
        if active.build is not None:
            raise RuntimeError("this thread is already building a configuration")
        self._scopes = gin_internals.scope_stack()
        self._scopes.append([])
        self._here: _Here = (self._scopes[-1], (), ())
        active.build = self
        # A build allocates much and frees little: collections in between took a third of the time of 1,000 blocks.
        self._collected_garbage = gc.isenabled()
        gc.disable()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._collected_garbage:
            gc.enable()
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
                return constructor(*args, **{**_suggested(constructor, defaults, derived), **kwargs})
            self._suggested = self._suggestions((*path, name), built, defaults, derived)
            return newest(constructor)(*args, **kwargs)
        finally:
            self._suggested = NO_SUGGESTIONS
            self._scopes.pop()
            self._here = outer

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
            self._made[id(args[0] if skip else made)] = call
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
            problem = Problem(self._selected_by(), f"{call.info.name} cannot be built{_at(call.path)}: {error}")
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
            message = f"{call.info.name} cannot be built{_at(call.path)}: {describe_error(error)}"
            return Problem(self._selected_by(), message)
        asks = call.info.name if missing.wanted_by is None else type(missing.wanted_by).__name__
        message = f"{part.info.name}{_at(part.path)} has no `{missing.name}`, which {asks} needs"
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
        if not self._calling:
            raise ParameterError(parameter, message)
        call = self._calling[-1]
        self._misfits.setdefault(_parameter_problem(call, parameter, message), []).append(call.path)
        if not self._collect:
            raise ConfigError(self.problems)

    @property
    def problems(self) -> list[Problem]:
        """The problems with parameters, each once, with all places where it occurs."""
        return [
            Problem(problem.location, problem.message + _at(*paths), problem.statement)
            for problem, paths in (self._unset or self._misfits).items()  # a misfit can follow from a stand-in
        ]

    def _missing(self, call: Call, values: dict[str, Any]) -> None:
        """Records required parameters without a value; a stand-in lets the build continue and find the others."""
        for name in call.plan.missing:
            candidates = call.plan.candidates.get(name)
            if name in call.arguments or (not candidates and values.get(name, gin.REQUIRED) is not gin.REQUIRED):
                continue
            problem = _missing_problem(call, name, candidates[-1].binding if candidates else None)
            self._unset.setdefault(problem, []).append(call.path)
            spec = call.info.spec(name)
            if not self._collect or spec is None or spec.annotation not in _STAND_INS:
                raise ConfigError(self.problems)
            values[name] = _STAND_INS[spec.annotation]

    def _needed(self, call: Call) -> None:
        """Records the options without a saved value that have an effect now."""
        for name in call.plan.left_out:
            if name not in call.arguments and name not in call.unused:
                problem = _missing_problem(call, name, call.plan.candidates[name][-1].binding)
                self._unset.setdefault(problem, []).append(call.path)
        if self._unset and not self._collect:
            raise ConfigError(self.problems)

    def unused(self, parameter: str, because: tuple[str, ...]) -> None:
        """Records that a parameter of the innermost running constructor has no effect, with the causes."""
        if self._calling:
            causes = tuple(_cause(self._calling, name) for name in because)
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
            message = f"{call.info.name} cannot be built{_at(call.path)}: {mismatch}"
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


def _cause(calling: list[Call], parameter: str) -> Cause:
    """The value of a parameter of the innermost call that has it and whose parent does not pass it."""
    for call in reversed(calling):
        if parameter in call.info.parameters and parameter not in call.arguments:
            candidates = call.plan.candidates.get(parameter)
            suggested = call.suggestions.value(parameter)
            default = call.info.parameters[parameter].default if suggested is UNSET else suggested
            return Cause(f"{call.info.name}.{parameter}", candidates[-1].binding if candidates else None, default)
    return Cause(parameter, None, UNSET)


def _missing_problem(call: Call, parameter: str, binding: Binding | None) -> Problem:
    name = f"{call.info.name}.{parameter}"
    if binding is not None and binding.is_left_out:
        message = f"{name} must be set: the saved run left out its value, which had no effect there"
        return Problem(binding.location, message, binding.text())
    return Problem(binding.location if binding else None, f"{name} must be set, and nothing sets it")


def _parameter_problem(call: Call, parameter: str, message: str) -> Problem:
    candidates = call.plan.candidates.get(parameter)
    name = f"{call.info.name}.{parameter}"
    if parameter in call.arguments:
        return Problem(None, f"{name}, which the parent determines, {message}")
    if candidates:
        binding = candidates[-1].binding
        return Problem(binding.location, f"{name} {message}", binding.text(written=True))
    whose = "the parent's" if parameter in {**call.suggestions.defaults, **call.suggestions.derived} else "its"
    return Problem(None, f"{name}, {whose} default, {message}")


def _at(*paths: tuple[str, ...]) -> str:
    places = compress([path for path in paths if path])
    return f" (at {', '.join(places)})" if places else ""
