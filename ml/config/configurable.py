"""The `configurable` decorator: gin's decorator, with values from the configuration being built."""

import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol, TypeVar, overload

import gin

from ml.config import gin_internals
from ml.config.annotations import Annotation, annotations_of
from ml.config.signatures import Configurable, Neutral, ParameterSpec
from ml.config.values import Reference


class ActiveBuild(Protocol):
    """Interface of the build in progress; see `ml.config.construction.Build`."""

    def call(self, info: Configurable, plain: Callable[..., Any], args: tuple, kwargs: dict, skip: int = 0) -> Any:
        """Calls a constructor with its configured values."""

    def child(
        self,
        name: str,
        constructor: Callable[..., Any],
        args: tuple,
        kwargs: dict,
        defaults: Mapping[str, Any],
        derived: Mapping[str, Any],
    ) -> Any:
        """Builds a child in the scope `name`."""

    def children(
        self, names: Iterable[str], constructor: Callable[..., Any], args: tuple, kwargs: dict, copier: Any
    ) -> dict[str, Any]:
        """Builds several children, each in the scope of its name."""

    def parameter_problem(self, parameter: str, message: str) -> None:
        """Records that a parameter has an invalid value."""

    def unused(self, parameter: str, because: tuple[str, ...]) -> None:
        """Records that a parameter has no effect."""


class _Active(threading.local):
    build: ActiveBuild | None = None
    importing = False  # whether a configuration is importing a module


active = _Active()
_by_selector: dict[str, Configurable] = {}
_neutral: dict[str, Neutral | Mapping[str, Neutral | None]] = {}  # by selector
_by_object: dict[int, tuple[Any, Configurable]] = {}  # by id, with the object itself so that the id is not reused


# A class stays the class and a function keeps its signature, for type checkers and editors as well as at run time.
_Target = TypeVar("_Target", bound=Callable[..., Any])
_Neutral = bool | Neutral | Collection[str] | Mapping[str, Neutral | None]


class _Decorator(Protocol):
    def __call__(self, target: _Target, /) -> _Target: ...


@overload
def configurable(target: _Target, /) -> _Target: ...
@overload
def configurable(
    name: str | None = None,
    /,
    *,
    module: str | None = ...,
    allowlist: Sequence[str] | None = ...,
    denylist: Sequence[str] | None = ...,
    neutral: _Neutral = ...,
) -> _Decorator: ...
def configurable(name_or_target: Any = None, /, *, neutral: _Neutral = (), **options: Any) -> Any:
    """Makes a class or a function configurable. Takes the arguments of `gin.configurable`.

    `neutral` names the parameters, or is True for all of them, that change no result of a run, such as the interval of
    checkpoints; `Neutral` declares those that change it by rounding, or that are neutral in some runs. They are saved
    and are no part of the fingerprint. What a neutral parameter holds as a part is neutral with it, except for the
    parameters that a dict maps to None.

    While a configuration is being built, its bindings fill the parameters that the caller does not pass. At any other
    time the object behaves as under `gin.configurable`.
    """
    if name_or_target is None or isinstance(name_or_target, str):
        return lambda target: _register(target, name_or_target, options, neutral)
    return _register(name_or_target, None, options, neutral)


def _register(
    target: Callable[..., Any], name: str | None, options: dict[str, Any], neutral: _Neutral
) -> Callable[..., Any]:
    if isinstance(target, type) and "__init__" not in target.__dict__:
        # Gin would wrap the inherited __init__, which is already wrapped: the parent's bindings would then apply too.
        cls: Any = target
        cls.__init__ = _own_copy(cls.__init__)
    with gin.config.interactive_mode() if _is_defined_again(target, name, options) else nullcontext():
        gin.configurable(name, **options)(target)
    entry = gin_internals.entry_of(target)
    _neutral[entry.selector] = _as_declared(neutral)
    return adopt(entry).target


def _as_declared(neutral: _Neutral) -> Neutral | Mapping[str, Neutral | None]:
    if isinstance(neutral, bool):
        return Neutral() if neutral else {}
    if isinstance(neutral, Neutral | Mapping):
        return neutral
    return dict.fromkeys(neutral, Neutral())


def declared_neutral(info: Configurable) -> Neutral | Mapping[str, Neutral | None]:
    """Returns the neutral parameters of a configurable by name; a single declaration is of all of them.

    A parameter with None changes results even where a neutral parameter holds the configurable.
    """
    return _neutral.get(info.selector, {})


def holding_for(info: Configurable, product: Any) -> frozenset[str]:
    """Returns the parameters whose conditional declaration as neutral holds for what a configurable built."""
    declared = declared_neutral(info)
    if isinstance(declared, Neutral):
        return frozenset()
    conditions = {name: one.only_if for name, one in declared.items() if one and one.only_if}
    holds = {condition: condition(product) for condition in set(conditions.values())}
    return frozenset(name for name, condition in conditions.items() if holds[condition])


def _is_defined_again(target: Callable[..., Any], name: str | None, options: dict[str, Any]) -> bool:
    """Returns whether the same definition runs again, as when a notebook cell is rerun or a module is reloaded."""
    name = name or target.__name__
    module = options.get("module", None if "." in name else target.__module__)
    known = gin_internals.registered(f"{module}.{name}" if module else name)
    return known is not None and all(
        getattr(known.wrapped, attribute, None) == getattr(target, attribute)
        for attribute in ("__module__", "__qualname__")
    )


def _own_copy(inherited: Any) -> Callable[..., None]:
    plain = inherited.__wrapped__ if hasattr(inherited, "__juniper__") else inherited

    @functools.wraps(plain)
    def __init__(self, *args, **kwargs):
        plain(self, *args, **kwargs)

    own: Any = __init__
    own.__signature__ = inspect.signature(plain)
    return own


def adopt(entry: Any) -> Configurable:
    """Wraps an entry of gin's registry so that it follows Juniper's rules, however it was registered."""
    known = _by_selector.get(entry.selector)
    held = _by_object.get(id(entry.wrapped))
    if held is not None and held[1].imported and held[1].selector == entry.selector:
        return held[1]
    if known is not None and find(entry.wrapped) is known and not is_outdated(entry.wrapped):
        return known
    # gin.register and gin.external_configurable do not change a class: it is called like a function.
    in_place = isinstance(entry.wrapped, type) and entry.wrapper is entry.wrapped
    info = _adopt_class(entry) if in_place else _adopt_function(entry)
    if not info.imported or _by_selector.get(entry.selector, info).imported:
        _by_selector[entry.selector] = info
    for known_as in (info.target, entry.wrapped, entry.wrapper):
        _by_object[id(known_as)] = (known_as, info)
    return info


def _adopt_class(entry: Any) -> Configurable:
    cls, through_gin = entry.wrapped, entry.wrapped.__init__
    plain = through_gin.__wrapped__
    info = _describe(entry, cls, plain, inspect.signature(plain), skip=1)

    @functools.wraps(plain)
    def __init__(self, *args, **kwargs):
        build = active.build
        if build is None:
            through_gin(self, *args, **kwargs)
        else:
            build.call(info, plain, (self, *args), kwargs, skip=1)

    own: Any = __init__
    own.__signature__ = inspect.signature(plain)
    own.__juniper__ = True
    cls.__init__ = own
    return info


def _adopt_function(entry: Any) -> Configurable:
    plain, through_gin = entry.wrapped, entry.wrapper
    signature = _signature(plain)

    @functools.wraps(plain, updated=())
    def function(*args, **kwargs):
        build = active.build
        if build is None:
            return through_gin(*args, **kwargs)
        return build.call(info, plain, args, kwargs)

    own: Any = function
    own.__signature__ = signature
    info = _describe(entry, own, plain, signature)
    return info


def _signature(plain: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(plain)
    except ValueError:  # some builtins have no signature: they accept any argument
        kinds = inspect.Parameter
        return inspect.Signature([kinds("args", kinds.VAR_POSITIONAL), kinds("kwargs", kinds.VAR_KEYWORD)])


def _describe(entry: Any, target: Any, plain: Any, signature: inspect.Signature, skip: int = 0) -> Configurable:
    kinds = inspect.Parameter
    hints = annotations_of(plain)

    def spec(parameter: inspect.Parameter) -> ParameterSpec:
        hint = hints.get(parameter.name, Annotation())
        return ParameterSpec(parameter.name, hint.type, parameter.default, hint.text)

    declared = list(signature.parameters.values())[skip:]
    named = [p for p in declared if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD, kinds.POSITIONAL_ONLY)]
    parameters = {p.name: spec(p) for p in named if _allowed(p.name, entry.allowlist, entry.denylist)}
    extra = next((spec(p) for p in declared if p.kind is kinds.VAR_KEYWORD), None)
    if extra is not None and entry.allowlist:
        others = [name for name in entry.allowlist if name not in signature.parameters]
        parameters |= {name: replace(extra, name=name) for name in others}
        extra = None
    return Configurable(
        name=entry.name.rpartition(".")[2],
        selector=entry.selector,
        target=target,
        constructor=plain,
        parameters=parameters,
        positional=tuple(p.name for p in declared if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)),
        extra=extra,
        closed=frozenset({*(signature.parameters), *(entry.denylist or ())} - parameters.keys()),
        imported=active.importing,
    )


def _allowed(name: str, allowlist: Any, denylist: Any) -> bool:
    return name in allowlist if allowlist else name not in (denylist or ())


def candidates(name: str) -> list[Configurable]:
    """Returns every configurable that `name`, with or without a module, can refer to; gin's own only by full name.

    Configurables that only a configuration imported are returned only if the program has none of that name.
    """
    registry = gin_internals.registry()
    selectors = registry.matching_selectors(name)
    if len(selectors) > 1:
        selectors = [s for s in selectors if not s.startswith("gin.")]
    found = [adopt(registry[selector]) for selector in selectors]
    return [info for info in found if not info.imported] or found


def known_names() -> list[str]:
    """Returns the short names of all registered configurables, without gin's own."""
    return sorted({s.rpartition(".")[2] for s in gin_internals.selectors() if not s.startswith("gin.")})


def find(value: Any) -> Configurable | None:
    """Returns the configurable of a class or function, the newest if it was redefined; None if there is none."""
    held = _by_object.get(id(value))
    return held and (held[1] if held[1].imported else _by_selector[held[1].selector])


def is_outdated(value: Any) -> bool:
    """Returns whether a configurable, or its class or function, has been redefined."""
    if isinstance(value, Configurable):
        return not value.imported and _by_selector[value.selector] is not value
    held = _by_object.get(id(value))
    return held is not None and is_outdated(held[1])


def newest(constructor: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the newest definition of a class or function that was redefined, and any other unchanged."""
    info = find(constructor) if is_outdated(constructor) else None
    return constructor if info is None else info.target


def _by_name(selector: str) -> Configurable:
    """The configurable of a full name, adopted from gin's registry if necessary."""
    return _by_selector.get(selector) or adopt(gin_internals.registered(selector))


class ScopedConstructor:
    """Constructor for a reference such as `@wide/MLP`: adds the scope `wide` wherever it is called. Can be pickled.

    Args:
        scopes: The scopes to add, outermost first.
        selector: The full name of the configurable.
        configurable: The configurable, if two configurations import modules of the same name; None looks it up.
    """

    def __init__(self, scopes: tuple[str, ...], selector: str, configurable: Configurable | None = None):
        self.scopes = scopes
        self.selector = selector
        self._configurable = configurable

    @property
    def configurable(self) -> Configurable:
        """The configurable that is built, the newest if it was redefined."""
        return self._configurable or _by_name(self.selector)

    def __reduce__(self):
        return type(self), (self.scopes, self.selector)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        gin_internals.ensure_scope_stack()
        gin_internals.enter_scope([*gin_internals.current_scope(), *self.scopes])
        try:
            return self.configurable.target(*args, **kwargs)
        finally:
            gin_internals.exit_scope()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScopedConstructor) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.scopes, self.selector))

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scopes, self.selector.rpartition('.')[2]))}"


def constructed_by(constructor: Callable[..., Any]) -> Configurable | None:
    """Returns the configurable that a constructor builds, with or without scopes; None if it is not configurable."""
    return constructor.configurable if isinstance(constructor, ScopedConstructor) else find(constructor)


def reference_to(value: Any) -> Reference | None:
    """Returns the reference that represents a class, function or scoped constructor in text; None for other values."""
    if isinstance(value, ScopedConstructor):
        return Reference(value.scopes, value.configurable)
    info = find(value) if callable(value) else None
    return Reference((), info) if info else None
