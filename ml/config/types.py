"""Strict checks of configured values against the annotations of constructors (rule 6)."""

import collections.abc
import inspect
import types
import typing
from dataclasses import replace
from typing import Any, Literal, Union

from ml.config.annotations import Annotation, annotations_of
from ml.config.limits import out_of_range
from ml.config.values import Constant, Macro, Reference, substitute, to_text, walk

_UNCHECKED = (Any, inspect.Parameter.empty, object)
_LONG = 200
_NODES = (Reference, Macro, Constant, type(None), bool, int, float, str, bytes)
_SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def mismatch(value: Any, annotation: Any) -> str | None:
    """Returns why a value does not fit an annotation, as text that follows the parameter's name; None if it fits.

    A `bool` is not an `int`, and an `int` is accepted as a `float`.

    Args:
        value: A tree of literals, `Reference`s, `Constant`s and Python objects.
        annotation: The resolved annotation.
    """
    if isinstance(value, Constant):
        return mismatch(value.value, annotation)
    if annotation in _UNCHECKED or isinstance(annotation, typing.TypeVar | str) or isinstance(value, Macro):
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return mismatch(value, arguments[0])
    if origin in (Union, types.UnionType):
        return _union_mismatch(value, annotation, arguments)
    if origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in arguments)
        return None if fits else f"must be one of {', '.join(map(repr, arguments))}, not {describe(value)}"
    if isinstance(value, Reference):
        return _reference_mismatch(value, annotation)
    if origin in _SEQUENCES or annotation in _SEQUENCES:
        return _items_mismatch(value, annotation, arguments)
    if origin is tuple or annotation is tuple:
        return _tuple_mismatch(value, annotation, arguments)
    if origin in _MAPPINGS or annotation in _MAPPINGS:
        return _dict_mismatch(value, annotation, arguments)
    if not _scalar_fits(value, annotation, origin):
        return _expected(annotation, value)
    return out_of_range(value, (annotation,))


def _union_mismatch(value: Any, annotation: Any, arguments: tuple) -> str | None:
    found = [mismatch(value, option) for option in arguments]
    problems = [problem for problem in found if problem is not None]
    if len(problems) < len(found):
        return None
    inside = [problem for problem in problems if not problem.startswith("must")]  # the container fits, an item does not
    return inside[0] if len(inside) == 1 else out_of_range(value, arguments) or _expected(annotation, value)


def _scalar_fits(value: Any, annotation: Any, origin: Any) -> bool:
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return type(value) in (float, int)
    if annotation in (bool, int, str, bytes):
        return type(value) is annotation
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        return callable(value) and not _is_what_is_wanted(value, annotation)
    if annotation is type or origin is type:
        return isinstance(value, type)
    expected = origin or annotation
    try:
        return isinstance(value, expected)
    except TypeError:  # a protocol that cannot be checked at run time
        return True


def _is_what_is_wanted(value: Any, annotation: Any) -> bool:
    """True if a value is an instance of what the expected constructor should build, rather than a constructor."""
    arguments = typing.get_args(annotation)
    wanted = arguments[-1] if arguments else Any
    return isinstance(wanted, type) and wanted not in _UNCHECKED and isinstance(value, wanted)


def _reference_mismatch(reference: Reference, annotation: Any) -> str | None:
    """Checks a reference by its target: a constructor for a callable, its product for any other annotation."""
    if _reference_fits(reference, annotation):
        return None
    if reference.evaluate or not _asks_for_constructor(annotation):
        return _expected(annotation, reference)
    wanted, made = typing.get_args(annotation)[-1], _made_by(reference.configurable.target)
    return f"must build a {_product(wanted)}, and {describe(reference)} builds a {_product(made)}"


def _reference_fits(reference: Reference, annotation: Any) -> bool:
    """True if a reference fits an annotation that is not a union."""
    made, arguments = _made_by(reference.configurable.target), typing.get_args(annotation)
    if reference.evaluate:
        if _asks_for_constructor(annotation):
            return _product_is_constructor(made, arguments)
        return made in _UNCHECKED or not (_are_types(annotation, made)) or _may_stand_for(made, annotation)
    if not _asks_for_constructor(annotation):
        return getattr(annotation, "_is_protocol", False)
    wanted = arguments[-1] if arguments else Any
    return wanted in _UNCHECKED or made in _UNCHECKED or _fits_what_is_wanted(made, wanted)


def _asks_for_constructor(annotation: Any) -> bool:
    kinds = (collections.abc.Callable, type)
    return annotation in kinds or typing.get_origin(annotation) in kinds


def _are_types(*kinds: Any) -> bool:
    return all(isinstance(kind, type) for kind in kinds)


def _made_by(target: Any) -> Any:
    """The type that a class or function returns; Any if its annotation does not determine it."""
    if isinstance(target, type):
        return target
    made = annotations_of(target).get("return", Annotation(Any)).type
    return Any if isinstance(made, str | typing.TypeVar) else made


def _product_is_constructor(made: Any, arguments: tuple) -> bool:
    """True if the result of `@X()` can be a constructor, as that of a factory can."""
    if made in _UNCHECKED or not isinstance(made, type):
        return True
    wanted = arguments[-1] if arguments else Any
    if wanted not in _UNCHECKED and _are_types(wanted) and issubclass(made, wanted):
        return False
    return any("__call__" in vars(base) for base in made.__mro__)


def _fits_what_is_wanted(made: Any, wanted: Any) -> bool:
    """True if a constructor of `made` is accepted where a constructor of `wanted` is expected."""
    if _are_types(made, wanted):
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
    if getattr(wanted, "_is_protocol", False) or issubclass(made, wanted) or (wanted is float and made is int):
        return True
    # A redefined class is another object: annotations with the old one accept the new one too.
    return any((b.__module__, b.__qualname__) == (wanted.__module__, wanted.__qualname__) for b in made.__mro__)


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
    return f"must be {spell(annotation)}, not {describe(value)}{_bracket_hint(annotation, value)}"


def _bracket_hint(annotation: Any, value: Any) -> str:
    """A hint if the reference would fit with parentheses, or without."""
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    options = typing.get_args(annotation) if is_union else (annotation,)
    if not isinstance(value, Reference):
        return ""
    other = replace(value, evaluate=not value.evaluate)
    if not any(_reference_fits(other, option) for option in options):
        return ""
    name = "/".join((*value.scopes, value.configurable.name))
    if value.evaluate:
        return f" (without parentheses, @{name} is the constructor)"
    return f" (with parentheses, @{name}() is the constructor's result)"


def takes_constructor(annotation: Any) -> bool:
    """Returns whether an annotation accepts a constructor, alone, in a union or in a container."""
    if typing.get_origin(annotation) in (Union, types.UnionType, tuple, *_SEQUENCES, *_MAPPINGS):
        return any(takes_constructor(option) for option in typing.get_args(annotation))
    return _asks_for_constructor(annotation)


def describe(value: Any) -> str:
    """Returns a value and its type as text for a message."""
    if isinstance(value, Reference):
        name = "/".join((*value.scopes, value.configurable.name))
        return f"the result of @{name}()" if value.evaluate else f"the reference @{name}"
    if value is None:
        return "None"
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    text = _shown(value)
    if len(text) > _LONG or "\n" in text or " at 0x" in text:
        return f"a {module}{kind.__qualname__}"
    return f"{text} ({module}{kind.__qualname__})"


def _shown(value: Any) -> str:
    """A value that contains references in the syntax of a configuration, any other by its `repr`."""
    if not any(isinstance(node, Reference | Macro | Constant) for node in walk(value)):
        return repr(value)
    return to_text(substitute(value, lambda node: node if isinstance(node, _NODES) else repr(node)), lambda _: None)


def spell(annotation: Any) -> str:
    """Returns an annotation as text for a message."""
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
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, typing.TypeVar):
        return annotation.__name__
    return getattr(annotation, "__qualname__", str(annotation))
