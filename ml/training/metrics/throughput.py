"""How fast a run is and what it takes of the machine."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ml.data import Batch

# What differs between two runs of one configuration: times, and what is made of them.
MACHINE_METRICS = frozenset({"seconds", "tokens_per_second", "mfu", "data_wait", "memory"})


class Throughput:
    """Measures from one logged step to the next, on the host alone: nothing here waits for the device.

    What is neither training nor loading (validation, saving) is left out by `restart` behind it.
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
            flops_per_token: Of training; None where a layer does not declare its FLOPs: then there is no utilization.
            peak_flops: Of the device, in a second.
            device: Where the run trains.
            clock: Returns seconds.
        """
        self._utilization = None if flops_per_token is None else flops_per_token / peak_flops  # of a token a second
        self._device = device
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Measures from here."""
        self._begun = self._clock()
        self._waited = 0.0
        self._targets = 0
        self._tokens = 0

    def waiting(self, batches: Iterator[Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
        """Passes the micro-batches of each step on, and notes how long they were waited for."""
        with contextlib.closing(batches):
            while True:
                begun = self._clock()
                step = next(batches, None)
                self._waited += self._clock() - begun
                if step is None:
                    return
                yield step

    def count(self, batches: Sequence[Batch]) -> None:
        """A step was taken on `batches`."""
        self._targets += sum(batch.num_targets for batch in batches)
        self._tokens += sum(batch.tokens.numel() for batch in batches)

    def read(self) -> dict[str, Any]:
        """The metrics since the last `restart`, and restarts.

        tokens_per_second: targets that counted. mfu: model FLOPs utilization (PaLM, appendix B): the FLOPs that the
        tokens which passed the model need, padding and masked ones among them, over those that the device could do.
        data_wait: the part of the time in which training waited for batches. memory: see `peak_memory`.
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
    """The most bytes so far in this process: of tensors on a CUDA device, else of resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB
