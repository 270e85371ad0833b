"""Sizes of memory on the command line."""

import re

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[KMGT]?)(?P<binary>i?)B", re.IGNORECASE)


def parse_memory_size(text: str) -> int | None:
    """Returns the bytes of a size such as "80GiB" or "80 GB"; None where it is no size above 0."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match["binary"] and not match["unit"]):
        return None
    base = 1024 if match["binary"] else 1000
    return int(float(match["number"]) * base ** _UNITS[match["unit"].upper()]) or None
