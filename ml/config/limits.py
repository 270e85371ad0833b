"""Limits of what a configuration can hold: numbers that fit their types, values that are not too deep or too long."""

import math
from typing import Any

from ml.config.errors import shortened
from ml.config.values import walk

MAX_DEPTH = 64  # containers, or macros, inside one another
MAX_EXPANSIONS = 10_000  # macros in the value of one binding, those in macros included


def unusable(value: Any) -> str | None:
    """Why a value that was read cannot be used, as words to follow what it is for; None where it can."""
    if is_too_deep(value):
        return f"is nested more than {MAX_DEPTH} levels deep"
    if any(isinstance(node, float) and math.isinf(node) for node in walk(value)):
        return "has a number that is larger than any float; write %math.inf for infinity"
    return None


def is_too_deep(value: Any) -> bool:
    """Whether more than `MAX_DEPTH` containers stand inside one another."""
    level, depth = [value], 0
    while (level := [item for node in level for item in _items(node)]) and depth <= MAX_DEPTH:
        depth += 1
    return depth > MAX_DEPTH


def _items(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [*node, *node.values()]
    return list(node) if isinstance(node, list | tuple) else []


def out_of_range(value: Any, kinds: tuple[Any, ...]) -> str | None:
    """Why an integer does not fit where one of `kinds` is asked: a 64-bit integer, or a finite float."""
    if type(value) is not int or -(2**63) <= value < 2**63:
        return None
    if float in kinds:
        try:
            float(value)
        except OverflowError:
            return f"must be at most 1.8e308, the largest float, not {shortened(str(value))}"
        return None
    return f"must fit in 64 bits, not be {shortened(str(value))}" if int in kinds else None
