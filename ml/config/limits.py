"""Limits on configured values: the range of numbers, the depth of nesting, the number of macros."""

import math
from typing import Any

from ml.config.errors import shortened
from ml.config.values import walk

MAX_DEPTH = 64  # levels of nested containers or macros
MAX_EXPANSIONS = 10_000  # macros in the value of one binding, including macros in macros


def unusable(value: Any) -> str | None:
    """Returns why a value cannot be used, as text that follows the parameter's name; None if it can."""
    if is_too_deep(value):
        return f"is nested more than {MAX_DEPTH} levels deep"
    if any(isinstance(node, float) and math.isinf(node) for node in walk(value)):
        return "has a number that exceeds the range of float; write %math.inf for infinity"
    return None


def is_too_deep(value: Any) -> bool:
    """Returns whether containers are nested more than `MAX_DEPTH` levels deep."""
    level, depth = [value], 0
    while (level := [item for node in level for item in _items(node)]) and depth <= MAX_DEPTH:
        depth += 1
    return depth > MAX_DEPTH


def _items(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [*node, *node.values()]
    return list(node) if isinstance(node, list | tuple) else []


def out_of_range(value: Any, kinds: tuple[Any, ...]) -> str | None:
    """Returns why an integer is out of range, as text that follows the parameter's name; None if it is not.

    Args:
        value: Any value; only integers can be out of range.
        kinds: The types that the parameter takes. An int must fit in 64 bits; a float must be finite.
    """
    if type(value) is not int or -(2**63) <= value < 2**63:
        return None
    if float in kinds:
        try:
            float(value)
        except OverflowError:
            return f"must be at most 1.8e308, the largest float, not {shortened(str(value))}"
        return None
    return f"must fit in 64 bits, not be {shortened(str(value))}" if int in kinds else None
