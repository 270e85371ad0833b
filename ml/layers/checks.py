"""Range checks that many layers share. Each names the parameter that is wrong and returns a value to go on with."""

import math

from ml.config import require


def positive(parameter: str, value: int) -> int:
    """Requires `value > 0`. Returns at least 1, so that a construction that collects its errors can go on."""
    require(value > 0, parameter, f"must be positive, not {value}")
    return max(value, 1)


def heads_or_default(hidden_size: int, num_heads: int | None) -> int:
    """`num_heads`, or where it is None one head for each 128 of the width, and one at least."""
    return max(hidden_size // 128, 1) if num_heads is None else positive("num_heads", num_heads)


def probability(parameter: str, value: float) -> float:
    """Requires `0 <= value < 1`: the share of activations that dropout sets to zero."""
    require(0.0 <= value < 1.0, parameter, f"must be at least 0 and below 1, not {value}")
    return value


def finite(parameter: str, value: float) -> float:
    """Requires a finite number."""
    require(math.isfinite(value), parameter, f"must be finite, not {value}")
    return value


def positive_float(parameter: str, value: float) -> float:
    """Requires `value > 0` and finite. Returns 1.0 in place of a value that is not."""
    valid = 0.0 < value < math.inf
    require(valid, parameter, f"must be positive and finite, not {value}")
    return value if valid else 1.0


def non_negative(parameter: str, value: float) -> float:
    """Requires `value >= 0` and finite."""
    require(0.0 <= value < math.inf, parameter, f"must be at least 0 and finite, not {value}")
    return value
