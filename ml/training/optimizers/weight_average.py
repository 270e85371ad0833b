"""Exponential moving average of the weights, often a better model than the last weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ml.config import configurable, require
from ml.distributed.fsdp import weights_changed
from ml.distributed.shards import local
from ml.training.optimizers import ParameterGroup
from ml.training.optimizers.rollback import portions, rolled_back_where


@configurable(neutral=["validate"])
class ExponentialMovingAverage:
    """Exponential moving average of all trained parameters: average = d · average + (1 - d) · weights.

    The average is kept at least in float32.

    Args:
        decay: Decay rate d after the warmup; the average spans about 1 / (1 - d) updates.
        every: Steps between two updates.
        start: Last step before averaging starts. The first update copies the weights.
        warmup: Whether to limit d to (1 + n) / (10 + n) in the n-th update after the first, so that the average of a
            short run also forgets the initial weights.
        validate: Whether to validate the average too, as `average_validation_loss` and so on.
    """

    def __init__(
        self, decay: float = 0.999, every: int = 1, start: int = 0, warmup: bool = True, validate: bool = True
    ):
        require(0.0 <= decay < 1.0, "decay", f"must be in [0, 1), not {decay}")
        require(every > 0, "every", f"must be positive, not {every}")
        require(start >= 0, "start", f"must not be negative: {start}")
        self.decay = decay
        self.every = every
        self.start_step = start
        self.warmup = warmup
        self.validate = validate

    def start(self, groups: list[ParameterGroup]) -> "WeightAverage":
        """Creates the average of the parameters before the first step."""
        return WeightAverage(self, groups)

    def num_updates(self, step: int) -> int:
        """Returns the number of updates after `step` steps."""
        return max(0, step - self.start_step) // self.every

    def is_due(self, step: int) -> bool:
        """Returns True if the average is updated after `step`."""
        return step > self.start_step and (step - self.start_step) % self.every == 0

    def decay_after(self, num_updates: int) -> float:
        """Returns the decay rate of the update after `num_updates` updates."""
        if num_updates == 0:
            return 0.0
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay


class WeightAverage:
    """Running average of the weights of a model."""

    def __init__(self, settings: ExponentialMovingAverage, groups: list[ParameterGroup]):
        self.settings = settings
        self._names = [name for group in groups for name in group.names]
        self._weights = [parameter for group in groups for parameter in group.parameters]
        self._averages = {weight: _widened(weight).clone() for weight in self._weights}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the averages by parameter name; before the first update, the initial weights."""
        return {name: self._averages[weight] for name, weight in zip(self._names, self._weights, strict=True)}

    @torch.no_grad()
    def restart(self) -> None:
        """Sets the averages to the weights, which were loaded after the average was created."""
        for weight, average in self._averages.items():
            local(average).copy_(local(weight))

    def is_validated(self, step: int) -> bool:
        """Returns True if the average after `step` is validated; never before the first update."""
        return self.settings.validate and self.settings.num_updates(step) > 0

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None) -> None:
        """Updates the average after a step, if due.

        Args:
            step: The step that was taken.
            skipped: () bool, true if the step was skipped; None if steps are never skipped.
        """
        if not self.settings.is_due(step):
            return
        decay = self.settings.decay_after(self.settings.num_updates(step - 1))
        is_first = decay == 0.0  # a copy, which is right after a skipped step too
        for weights in portions(self._weights):
            averages = [local(self._averages[weight]) for weight in weights]
            with rolled_back_where(None if is_first else skipped, averages):
                torch._foreach_lerp_(averages, [_widened(local(weight)) for weight in weights], 1.0 - decay)

    @contextlib.contextmanager
    def in_place_of_weights(self, model: nn.Module) -> Iterator[None]:
        """Replaces the weights of the model by the averages inside the context, with a copy of the weights.

        Args:
            model: The model of the averaged weights.
        """
        before = [local(weight).detach().clone() for weight in self._weights]
        try:
            self._write(model, [local(self._averages[weight]) for weight in self._weights])
            yield
        finally:
            self._write(model, before)

    @torch.no_grad()
    def _write(self, model: nn.Module, values: list[Tensor]) -> None:
        for weight, new in zip(self._weights, values, strict=True):
            local(weight).copy_(new)
        weights_changed(model)


def _widened(weight: Tensor) -> Tensor:
    """Converts a weight to at least float32; no copy if it has that precision."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
