"""Arithmetic on numbers in configuration text: `%hidden_size * 4`."""

import math
import operator
from collections.abc import Callable
from typing import Any

from ml.config.types import describe
from ml.config.values import Constant, Expression

_MOST_BITS = 1024  # as many as the greatest float; `10**10**10` would run out of memory
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
    """An expression without a value; the message follows its text."""


def calculate(expression: Expression) -> int | float:
    """The value of an expression whose operands are numbers, or constants that stand for numbers.

    Raises:
        ArithmeticProblem: an operand that is no number, a division by zero, a result that is too large or not real.
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
    """Refuses a power whose result is too large before Python starts to work it out."""
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > _MOST_BITS:
        raise ArithmeticProblem("is too large")
