"""Strict checks of configured values against the annotations of constructors (rule 6)."""

import collections.abc
import inspect
import types
import typing
from typing import Any, Literal, Union

from ml.config.values import Constant, Macro, Reference

_UNCHECKED = (Any, inspect.Parameter.empty, object)
_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def mismatch(value: Any, annotation: Any) -> str | None:
    """Why `value` does not fit `annotation`, as words to follow the name of the parameter; None when it fits.

    `value` is a tree of literals, `Reference`s and `Constant`s. A `bool` is not an `int`, an `int` may stand for a
    `float`, and nothing is ever converted.
    """
    if isinstance(value, Constant):
        return mismatch(value.value, annotation)
    if annotation in _UNCHECKED or isinstance(annotation, typing.TypeVar | str) or isinstance(value, Macro):
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return mismatch(value, arguments[0])
    if origin in (Union, types.UnionType):
        return None if any(mismatch(value, option) is None for option in arguments) else _expected(annotation, value)
    if origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in arguments)
        return None if fits else f"must be one of {', '.join(map(repr, arguments))}, not {describe(value)}"
    if isinstance(value, Reference):
        return _reference_mismatch(value, annotation, origin, arguments)
    if origin in _SEQUENCES or annotation in _SEQUENCES:
        return _items_mismatch(value, annotation, arguments)
    if origin is tuple or annotation is tuple:
        return _tuple_mismatch(value, annotation, arguments)
    if origin in _MAPPINGS or annotation in _MAPPINGS:
        return _dict_mismatch(value, annotation, arguments)
    return None if _scalar_fits(value, annotation, origin) else _expected(annotation, value)


def _scalar_fits(value: Any, annotation: Any, origin: Any) -> bool:
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return type(value) in (float, int)
    if annotation in (bool, int, str, bytes):
        return type(value) is annotation
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        return callable(value)
    if annotation is type or origin is type:
        return isinstance(value, type)
    expected = origin or annotation
    try:
        return isinstance(value, expected)
    except TypeError:  # a protocol that cannot be checked at run time
        return True


def _reference_mismatch(reference: Reference, annotation: Any, origin: Any, arguments: tuple) -> str | None:
    """References are checked by what they name: a constructor for a callable, its product for anything else."""
    target = reference.configurable.target
    if reference.evaluate:
        made = target if isinstance(target, type) else inspect.signature(target).return_annotation
        if isinstance(annotation, type) and isinstance(made, type) and not _may_stand_for(made, annotation):
            return _expected(annotation, reference)
        return None
    takes_callable = annotation in (collections.abc.Callable, type) or origin in (collections.abc.Callable, type)
    if not takes_callable and not getattr(annotation, "_is_protocol", False):
        return _expected(annotation, reference)
    wanted, made = arguments[-1] if arguments else Any, _made_by(target)
    if wanted in _UNCHECKED or made in _UNCHECKED or _fits_what_is_wanted(made, wanted):
        return None
    return f"must build a {_product(wanted)}, and {describe(reference)} builds a {_product(made)}"


def _made_by(target: Any) -> Any:
    """The type of what a class or function makes, as far as it says."""
    if isinstance(target, type):
        return target
    try:
        return typing.get_type_hints(inspect.unwrap(target)).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any


def _fits_what_is_wanted(made: Any, wanted: Any) -> bool:
    """Whether a constructor of the one may stand where a constructor of the other is asked for."""
    if isinstance(made, type) and isinstance(wanted, type):
        return _may_stand_for(made, wanted)
    is_function = [typing.get_origin(kind) is collections.abc.Callable for kind in (made, wanted)]
    if all(is_function):
        return typing.get_args(made) == typing.get_args(wanted)
    if is_function[0] and isinstance(wanted, type):
        return False
    if is_function[1] and isinstance(made, type):
        return any("__call__" in vars(base) for base in made.__mro__)
    return True


def _product(kind: Any) -> str:
    if isinstance(kind, type):
        return kind.__name__
    arguments = typing.get_args(kind)
    returned = arguments[-1] if arguments else Any
    if returned in (None, type(None)):
        return "function that returns nothing"
    return f"function that returns a {returned.__name__}" if isinstance(returned, type) else "function"


def _may_stand_for(made: type, wanted: type) -> bool:
    return getattr(wanted, "_is_protocol", False) or issubclass(made, wanted) or (wanted is float and made is int)


def _items_mismatch(value: Any, annotation: Any, arguments: tuple) -> str | None:
    if type(value) not in (list, tuple) or (
        (annotation is list or typing.get_origin(annotation) is list) and (type(value) is not list)
    ):
        return _expected(annotation, value)
    return _first(value, [arguments[0]] * len(value)) if arguments else None


def _tuple_mismatch(value: Any, annotation: Any, arguments: tuple) -> str | None:
    if type(value) is not tuple:
        return _expected(annotation, value)
    if not arguments:
        return None
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _first(value, [arguments[0]] * len(value))
    wanted = () if arguments == ((),) else arguments
    if len(value) != len(wanted):
        return f"must be {spell(annotation)} of length {len(wanted)}, not of length {len(value)}"
    return _first(value, wanted)


def _dict_mismatch(value: Any, annotation: Any, arguments: tuple) -> str | None:
    if type(value) is not dict:
        return _expected(annotation, value)
    if not arguments:
        return None
    for key, item in value.items():
        if problem := mismatch(key, arguments[0]):
            return f"has the key {key!r}, which {problem}"
        if problem := mismatch(item, arguments[1]):
            return f"[{key!r}] {problem}"
    return None


def _first(items: Any, annotations: Any) -> str | None:
    for index, (item, annotation) in enumerate(zip(items, annotations, strict=True)):
        if problem := mismatch(item, annotation):
            return f"[{index}] {problem}"
    return None


def _expected(annotation: Any, value: Any) -> str:
    hint = ""
    if (
        isinstance(value, Reference)
        and not value.evaluate
        and mismatch(Reference((), value.configurable, True), annotation) is None
    ):
        hint = f" (with brackets, @{value.configurable.name}(), it is what the constructor makes)"
    return f"must be {spell(annotation)}, not {describe(value)}{hint}"


def takes_constructor(annotation: Any) -> bool:
    """Whether a reference without brackets fits the annotation, alone or among other values."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return any(takes_constructor(option) for option in typing.get_args(annotation))
    origin = typing.get_origin(annotation)
    return annotation in (collections.abc.Callable, type) or origin in (collections.abc.Callable, type)


def describe(value: Any) -> str:
    """A value and its type, for a message."""
    if isinstance(value, Reference):
        name = "/".join((*value.scopes, value.configurable.name))
        return f"the result of @{name}()" if value.evaluate else f"the reference @{name}"
    if value is None:
        return "None"
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{value!r} ({module}{kind.__qualname__})"


def spell(annotation: Any) -> str:
    """An annotation as a person writes it."""
    if annotation is None or annotation is type(None):
        return "None"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " | ".join(spell(option) for option in arguments)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin is typing.Annotated:
        return spell(arguments[0])
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        made = arguments[-1] if arguments else Any
        if made in _UNCHECKED or not isinstance(made, type):
            return "a reference (@Name)"
        return f"a reference (@Name) to a constructor of {made.__name__}"
    if origin is not None and arguments:
        inside = ", ".join("..." if a is Ellipsis else spell(a) for a in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    if annotation is inspect.Parameter.empty:
        return "anything"
    return getattr(annotation, "__qualname__", str(annotation))
