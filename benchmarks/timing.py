"""Alternating timing of two functions, so that a drift in the speed of the machine affects both equally."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ml.training.products import multiplies_natively


class Comparison(NamedTuple):
    """Median seconds of both, and the median ratio of second to first over the rounds."""

    first: float
    second: float
    ratio: float


def compare(
    first: Callable[[], Any],
    second: Callable[[], Any],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Times `first` and `second` alternately by a clock, without the first `warmup` rounds."""
    return alternate(lambda: seconds(first, clock), lambda: seconds(second, clock), rounds, warmup)


def alternate(first: Callable[[], float], second: Callable[[], float], rounds: int, warmup: int = 1) -> Comparison:
    """As `compare`, of functions that return their own seconds."""
    pairs = [(first(), second()) for _ in range(warmup + rounds)][warmup:]
    return Comparison(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds of a call, after garbage collection."""
    gc.collect()
    begun = clock()
    call()
    return clock() - begun


def is_skipped(dtype: torch.dtype) -> bool:
    """Returns True, and prints so, where the CPU emulates products in `dtype`: they take 50 times as long and more."""
    if multiplies_natively(torch.device("cpu"), dtype):
        return False
    print(f"{str(dtype).removeprefix('torch.')} is skipped: this CPU has no instructions for its products", flush=True)
    return True
