"""Values of a TOML file as gin text. A string is gin text itself."""

import ast
import math
from typing import Any

from ml.errors import UserError


def gin_text(value: Any) -> str:
    """Returns the gin text of a value that `tomllib` read; equal values have equal text.

    A string is gin text itself, in lists and tables too: `"@Mamba2"`, `"None"`, `"'a string'"`.

    Raises:
        UserError: There is no such text.
    """
    if isinstance(value, str):
        return _canonical(value.strip())
    if isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(gin_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {gin_text(item)}" for key, item in value.items()) + "}"
    raise UserError(f"gin has no {type(value).__name__}: {value}")


def _canonical(text: str) -> str:
    """Python literals by their `repr`; text with references or macros unchanged."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if "@" in text or "%" in text:
            return text
        raise UserError(f"{text!r} is no gin value; a string has quotes of its own inside: \"'{text}'\"") from None
    canonical = repr(value)
    return canonical if _is_literal(canonical) else text  # 1e999 is no longer one once it has become inf


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except ValueError:
        return False
    return True


def _float_text(value: float) -> str:
    if math.isnan(value):
        return "%math.nan"
    if math.isinf(value):
        return "%math.inf" if value > 0.0 else "%math.minus_inf"
    return repr(value)
