"""Throughput, utilization and memory of a run."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

import torch

from ml.data import Batch

# Metrics that differ between two runs of one configuration: times, and values derived from them.
MACHINE_METRICS = frozenset({"seconds", "tokens_per_second", "mfu", "data_wait", "memory"})


class Throughput:
    """Measures throughput between logged steps on the host, without synchronizing with the device.

    `restart` excludes the time of validation and saving.
    """

    def __init__(
        self,
        flops_per_token: float | None,
        peak_flops: float,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts to measure.

        Args:
            flops_per_token: FLOPs of training per token; None if a layer does not declare its FLOPs, which omits the
                utilization.
            peak_flops: Peak FLOPs per second of the devices of all processes.
            device: The device of the run.
            clock: Returns seconds.
        """
        self._utilization = None if flops_per_token is None else flops_per_token / peak_flops  # per token per second
        self._device = device
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Starts a new measurement."""
        self._begun = self._clock()
        self._waited = 0.0
        self._targets = 0
        self._tokens = 0

    def waiting(self, batches: Generator[list[Batch], None, None]) -> Generator[list[Batch], None, None]:
        """Yields the micro-batches of each step and measures the time spent waiting for them."""
        with contextlib.closing(batches):
            while True:
                begun = self._clock()
                step = next(batches, None)
                self._waited += self._clock() - begun
                if step is None:
                    return
                yield step

    def count(self, num_targets: int, num_tokens: int) -> None:
        """Counts the tokens of a step.

        Args:
            num_targets: Targets in the loss, of all processes.
            num_tokens: All tokens, of all processes.
        """
        self._targets += num_targets
        self._tokens += num_tokens

    def read(self) -> dict[str, Any]:
        """Returns the metrics since the last `restart`, and restarts.

        Returns:
            tokens_per_second: Targets in the loss per second. mfu: Model FLOPs utilization (PaLM, appendix B), the
            FLOPs of all tokens, padded and masked ones included, over the peak of the device. data_wait: Fraction of
            the time spent waiting for batches. memory: See `peak_memory`.
        """
        seconds = self._clock() - self._begun
        measured = {
            "tokens_per_second": self._targets / seconds,
            **({} if self._utilization is None else {"mfu": self._utilization * self._tokens / seconds}),
            "data_wait": self._waited / seconds,
            "memory": peak_memory(self._device),
        }
        self.restart()
        return measured


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory of this process in bytes: tensors on a CUDA device, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
