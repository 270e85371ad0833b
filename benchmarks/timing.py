"""Timing two things against each other: in turn, so that a drift of the machine's speed touches both alike."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Comparison(NamedTuple):
    """Median seconds of both, and the median over the rounds of the second's time over the first's."""

    first: float
    second: float
    ratio: float


def compare(first: Callable[[], Any], second: Callable[[], Any], rounds: int, warmup: int = 1) -> Comparison:
    """Times `first` and `second` in turn; the rounds of `warmup` do not count."""
    pairs = [(seconds(first), seconds(second)) for _ in range(warmup + rounds)][warmup:]
    return Comparison(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes, garbage collected before."""
    gc.collect()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
