"""Arithmetic on numbers in configuration text: `%hidden_size * 4`."""

import math
import operator
from collections.abc import Callable
from typing import Any

from ml.config.types import describe
from ml.config.values import Constant, Expression

_MOST_BITS = 1024  # as in the largest float; `10**10**10` would run out of memory
_UNARY: dict[str, Callable[..., Any]] = {"-": operator.neg, "+": operator.pos}
_BINARY: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


class ArithmeticProblem(ValueError):
    """An expression that has no value. The message follows the text of the expression."""


def calculate(expression: Expression) -> int | float:
    """Returns the value of an expression of numbers and numeric constants.

    Raises:
        ArithmeticProblem: An operand is not a number, a division is by zero, or the result is too large or not real.
    """
    operands = [o.value if isinstance(o, Constant) else o for o in expression.operands]
    for operand, written in zip(operands, expression.operands, strict=True):
        if type(operand) not in (int, float):
            raise ArithmeticProblem(f"takes numbers, not {describe(written)}")
    if expression.operator == "**":
        _check_power(*operands)
    apply = (_UNARY if len(operands) == 1 else _BINARY)[expression.operator]
    try:
        result = apply(*operands)
    except ZeroDivisionError:
        raise ArithmeticProblem("divides by zero") from None
    except OverflowError:
        raise ArithmeticProblem("is too large") from None
    if isinstance(result, complex):
        raise ArithmeticProblem("has no real value")
    if isinstance(result, int):
        too_large = result.bit_length() > _MOST_BITS
    else:
        too_large = not math.isfinite(result) and all(map(math.isfinite, operands))
    if too_large:
        raise ArithmeticProblem("is too large")
    return result


def _check_power(base: int | float, exponent: int | float) -> None:
    """Rejects a power whose result is too large before Python computes it."""
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > _MOST_BITS:
        raise ArithmeticProblem("is too large")
