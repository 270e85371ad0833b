"""Timing of one row of `gpu_rows.py`."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

ROUNDS = 5


class Row(NamedTuple):
    """A row of a table."""

    table: str
    name: str
    measure: Callable[[], dict[str, Any]]


def timed(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """Median milliseconds of a step after two others, and the memory of the last one."""
    step(), step()
    reset_memory(device)
    values: dict[str, Any] = {"ms": 1000 * statistics.median(seconds(step, device) for _ in range(ROUNDS))}
    if (memory := peak_memory(device)) is not None:
        values["memory_mib"] = memory / 2**20
    return values


def seconds(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Returns the seconds of a call, until the device has finished; of the mean of several without a wait between."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else contextlib.nullcontext
    synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return (time.perf_counter() - begun) / times


def reset_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
