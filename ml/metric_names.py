"""Names of metrics, the same in plots, tables and trackers."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

SEPARATOR = "/"
"""Between the name of an object in `metrics.jsonl` and that of a value in it; names of modules have dots."""

_LARGEST = sys.float_info.max


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the finite numbers of a line of `metrics.jsonl`, such as `routers/decoder.block_0.mlp.router/busiest`."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}{SEPARATOR}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
            yield f"{prefix}{name}", value


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line by name, without `step`, which is where they stand."""
    return {name: value for name, value in flat(record) if name != "step"}
