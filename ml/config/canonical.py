"""Canonical spelling of values, so that equal runs have equal operative configs and fingerprints (rule 9)."""

import collections.abc
import sys
import types
import typing
from typing import Any, Union

from ml.config.types import mismatch


class Unordered:
    """Marks a dict parameter whose order has no effect: `weights: Annotated[dict[str, float], UNORDERED]`.

    Such a dict is sorted by key before it is passed to the constructor. Any other dict keeps the order in which it was
    written, which may be significant, such as the order of blocks.
    """

    def __repr__(self) -> str:
        return "UNORDERED"


UNORDERED = Unordered()
_LIST_OR_TUPLE = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def canonical(value: Any, annotation: Any) -> Any:
    """Returns the canonical spelling of a value that fits an annotation, and any other value unchanged.

    An int becomes a float if the annotation is float. A tuple becomes a list if the annotation allows both. A dict
    marked `UNORDERED` is sorted. All other values have one spelling.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = canonical(value, arguments[0])
        return _sorted(inner) if UNORDERED in arguments[1:] and type(inner) is dict else inner
    if origin in (Union, types.UnionType):
        return _by_option(value, arguments)
    if annotation is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    kind = origin or annotation
    if kind in _LIST_OR_TUPLE and type(value) in (list, tuple):
        return _items(list(value), arguments)
    if kind is list and type(value) is list:
        return _items(value, arguments)
    if kind is tuple and type(value) is tuple:
        wanted = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
        return tuple(map(canonical, value, wanted)) if len(value) == len(wanted) else value
    if kind in _MAPPINGS and type(value) is dict and arguments:
        return {canonical(key, arguments[0]): canonical(item, arguments[1]) for key, item in value.items()}
    return value


def _items(value: list, arguments: tuple) -> list:
    return [canonical(item, arguments[0]) for item in value] if arguments else value


def _by_option(value: Any, options: tuple) -> Any:
    """The spelling by the option of a union that leaves the value unchanged, else by the first option that it fits."""
    fitting = [canonical(value, option) for option in options if mismatch(value, option) is None]
    as_it_is = [found for found in fitting if repr(found) == repr(value)]
    return (as_it_is or fitting or [value])[0]


def _sorted(value: dict) -> dict:
    return dict(sorted(value.items(), key=lambda item: repr(item[0])))
