"""Checks of the values of a checkpoint that are not tensors; the file may be damaged or hostile."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml.training.errors import RunError


def require_counts(found: Any, file: Path) -> dict[str, Any]:
    """Requires the values that training saves, each of its type; further ones are left as they are.

    Args:
        found: The content of the file.
        file: The file, for the message.

    Raises:
        RunError: A value is missing or of another type.
    """
    if not isinstance(found, dict):
        raise RunError(f"{file} is not an object")
    for name, fits in _REQUIRED.items():
        if name not in found or not fits(found[name]):
            raise RunError(f"{file} has no {name}" if name not in found else f"{file} has a wrong {name}")
    for name, fits in _OPTIONAL.items():
        if name in found and not fits(found[name]):
            raise RunError(f"{file} has a wrong {name}")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_record(value: Any) -> bool:
    """True for a line of metrics: numbers, and objects of numbers."""
    return isinstance(value, Mapping) and _is_count(value.get("step")) and all(map(_is_measured, value.values()))


def _is_measured(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_measured(part) for part in value.values())
    return value is None or _is_number(value)


def _are_lowest(value: Any) -> bool:
    """True for lowest values of validations by name."""
    return isinstance(value, Mapping) and all(map(_is_lowest, value.values()))


def _is_lowest(value: Any) -> bool:
    counts = ("step", "num_since")
    fits = isinstance(value, Mapping) and {"metric", "min_improvement", "value", *counts} <= value.keys()
    return fits and all(_is_count(value[name]) for name in counts) and _is_measured(value["value"])


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "tokens": _is_count,
    "seconds": _is_number,
    "data_sha256": lambda value: isinstance(value, str),
    "unvalidated": lambda value: value is None or _is_record(value),
    "untouched": _is_list_of_names,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "sequences": _is_count,
    "lowest": _are_lowest,
    "order_sha256": lambda value: value is None or isinstance(value, str),
}
