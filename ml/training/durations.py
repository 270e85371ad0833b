"""Durations in the configuration."""

import re

from ml.config import require

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(parameter: str, text: str) -> float:
    """Returns a duration such as '90m' or '1h30m' in seconds.

    Args:
        parameter: The parameter that holds it, for the message.
        text: Numbers, each with its unit: s, m, h or d.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    is_whole = "".join(number + unit for number, unit in parts) == text
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    require(is_whole and seconds > 0.0, parameter, f"must be a duration such as '90m', '3h' or '1h30m', not {text!r}")
    return seconds
