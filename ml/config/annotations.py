"""Annotations of constructors, each resolved separately, so that an unresolvable one does not hide the others."""

import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple


class Annotation(NamedTuple):
    """A resolved annotation.

    Attributes:
        type: The annotation, with a type variable for each unknown name; its text if it cannot be evaluated.
        unknown: The names in it that do not exist at run time.
        text: The annotation as written, if some of it is unknown; else empty.
    """

    type: Any = inspect.Parameter.empty
    unknown: tuple[str, ...] = ()
    text: str = ""


def annotations_of(function: Callable[..., Any]) -> dict[str, Annotation]:
    """Returns the annotations of a function, `return` included; for a class, those of its constructor."""
    if isinstance(function, type):
        function = function.__init__  # type: ignore[misc]  # of this very class, whatever those derived from it take
    known = _globals(function)
    return {name: _resolve(written, known) for name, written in getattr(function, "__annotations__", {}).items()}


def _globals(function: Callable[..., Any]) -> dict[str, Any]:
    return getattr(inspect.unwrap(function), "__globals__", {})


def _resolve(written: Any, known: dict[str, Any]) -> Annotation:
    unknown: dict[str, Any] = {}
    text = written if isinstance(written, str) else str(written)
    while True:
        try:
            holder = SimpleNamespace(__annotations__={"it": written})
            hints = typing.get_type_hints(holder, known, unknown, include_extras=True)
        except NameError as error:
            if error.name is None or error.name in unknown:
                return Annotation(written, (text,), text)
            unknown[error.name] = typing.TypeVar(error.name)
        except Exception:  # an annotation may be any expression, and anything can happen in it
            return Annotation(written, tuple(unknown) or (text,), text)
        else:
            return Annotation(hints["it"], tuple(unknown), text if unknown else "")
