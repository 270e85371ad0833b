"""Skipping of steps with a spike of the loss or the gradient norm."""

import torch
from torch import Tensor

from ml.config import configurable, require
from ml.layers.checks import positive_float


@configurable(neutral=["max_in_a_row"])
class SkipStep:
    """Skips steps with a spike of the loss or the gradient norm (OLMo 2, 2025).

    A value is a spike if it is not finite, or more than `threshold` standard deviations above the mean of the last
    `window` steps that were not skipped. The decision is made on the device, without synchronizing. A skipped step
    leaves weights, optimizer state and averages bitwise unchanged; it counts as a step for the schedule and the data.

    Args:
        window: Number of earlier steps that a value is compared with.
        threshold: Standard deviations above the mean that make a spike.
        min_history: Number of steps before the first comparison; steps that are not finite are always skipped.
        loss: Whether to compare the loss.
        grad_norm: Whether to compare the gradient norm before clipping.
        max_in_a_row: Number of consecutive skipped steps that stops the run, checked when it logs or saves.
    """

    def __init__(
        self,
        window: int = 128,
        threshold: float = 6.0,
        min_history: int = 32,
        loss: bool = True,
        grad_norm: bool = True,
        max_in_a_row: int = 20,
    ):
        require(window > 1, "window", f"must be at least 2, not {window}")
        require(2 <= min_history <= window, "min_history", f"must be from 2 to window ({window}), not {min_history}")
        require(loss or grad_norm, "loss", "must be True where SkipStep.grad_norm is False: nothing would be compared")
        require(max_in_a_row > 0, "max_in_a_row", f"must be positive, not {max_in_a_row}")
        self.window = window
        self.threshold = positive_float("threshold", threshold)
        self.min_history = min_history
        self.compared = [name for name, is_compared in (("loss", loss), ("grad_norm", grad_norm)) if is_compared]
        self.max_in_a_row = max_in_a_row

    def start(self, device: torch.device) -> "SpikeGuard":
        """Creates the guard before the first step."""
        return SpikeGuard(self, device)


class SpikeGuard:
    """Detects spikes on the device; holds the history of recent steps and the number of skipped ones."""

    def __init__(self, settings: SkipStep, device: torch.device):
        self.settings = settings
        self._history = {name: torch.zeros(settings.window, device=device) for name in settings.compared}
        self._taken, self.skipped, self.in_a_row = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
        self._slots = torch.arange(settings.window, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that a step changes, by name."""
        counts = {"taken": self._taken, "skipped": self.skipped, "in_a_row": self.in_a_row}
        return {**self._history, **counts}

    def problem(self) -> str | None:
        """Returns a message if too many consecutive steps were skipped, else None; synchronizes with the device."""
        in_a_row = self.in_a_row.item()
        if in_a_row < self.settings.max_in_a_row:
            return None
        return f"the last {in_a_row} steps were skipped: their loss or gradient norm spiked or was not finite"

    @torch.no_grad()
    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Decides whether to skip a step, and updates the history.

        Args:
            loss: () loss of the step.
            grad_norm: () gradient norm of the step, before clipping.

        Returns:
            () bool, true if the step is skipped.
        """
        values = {"loss": loss.float(), "grad_norm": grad_norm.float()}
        skip = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        for name, history in self._history.items():
            skip = skip | self._is_spike(values[name], history)
        position = self._taken % self.settings.window
        for name, history in self._history.items():
            torch.where((self._slots == position) & ~skip, values[name], history, out=history)
        self._taken += ~skip
        self.skipped += skip
        self.in_a_row.add_(1).mul_(skip)
        return skip

    def _is_spike(self, value: Tensor, history: Tensor) -> Tensor:
        count = self._taken.clamp(max=self.settings.window)
        filled = self._slots < count
        mean = history.sum() / count  # empty slots are 0
        variance = torch.where(filled, history - mean, 0.0).square().sum() / (count - 1)
        far = value > mean + self.settings.threshold * variance.sqrt()
        return far & (count >= self.settings.min_history)
