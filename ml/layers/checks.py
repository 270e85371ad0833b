"""Range checks that many layers share. Each names the invalid parameter and returns a usable value."""

import math

from ml.config import require

MAX_SIZE = 2**31 - 1  # of one dimension of a tensor
MAX_COUNT = 2**16  # of modules that are built one by one
_STAND_IN = 1024  # replaces a size that is too large, so that further errors are found
ADDRESSABLE = 2**47  # bytes that one process can address


def positive(parameter: str, value: int, at_most: int = MAX_SIZE) -> int:
    """Requires `0 < value <= at_most`. Returns a valid value, so that the construction can collect
    further errors.

    Args:
        parameter: Name for the message.
        value: Size of a dimension, or a number of modules.
        at_most: `MAX_COUNT` for a number of modules.
    """
    require(value > 0, parameter, f"must be positive, not {value}")
    require(value <= at_most, parameter, f"must be at most {at_most:,}, not {value:,}")
    return max(value, 1) if value <= at_most else _STAND_IN


def heads_or_default(hidden_size: int, num_heads: int | None) -> int:
    """`num_heads`, or one head per 128 channels and at least one where it is None."""
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


def checked_lr_scale(lr_scale: float) -> float:
    """Requires a learning rate scale that is finite and not negative, and returns it."""
    require(0.0 <= lr_scale < math.inf, "lr_scale", f"must be at least 0 (0 freezes) and finite, not {lr_scale}")
    return lr_scale
