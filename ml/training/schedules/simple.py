"""Schedules with linear warmup followed by one curve.

The factor of step s is s / warmup_steps during warmup, then a function of progress, which is 0 at the end of warmup and
1 at the last step, or after it in a decay to 0.
"""

import abc

from ml.config import configurable, require
from ml.training.schedules.schedule import Schedule, cosine, progress_of_decay, straight


class WarmupSchedule(Schedule):
    """Linear warmup, followed by the curve of a subclass.

    Attributes:
        final_fraction: Factor at the end of the curve.
    """

    def __init__(self, num_steps: int, warmup_steps: int, final_fraction: float):
        fits = 0 <= warmup_steps <= num_steps
        require(fits, "warmup_steps", f"must be from 0 to Trainer.num_steps ({num_steps}), not {warmup_steps}")
        self.num_steps = num_steps
        _require_fraction(final_fraction, "final_fraction")
        self.warmup_steps = warmup_steps
        self.final_fraction = final_fraction

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        num_steps = self.num_steps - self.warmup_steps
        return self.after_warmup(progress_of_decay(step - self.warmup_steps, num_steps, self.final_fraction))

    @abc.abstractmethod
    def after_warmup(self, progress: float) -> float:
        """Returns the factor at `progress`, in [0, 1], of the steps after warmup."""


def _require_fraction(value: float, parameter: str) -> None:
    require(0.0 <= value <= 1.0, parameter, f"must be in [0, 1], not {value}")


@configurable
class ConstantSchedule(WarmupSchedule):
    """Linear warmup, then a constant factor of 1.

    Args:
        num_steps: Number of steps of the run.
        warmup_steps: Number of warmup steps.
    """

    def __init__(self, num_steps: int, warmup_steps: int = 0):
        super().__init__(num_steps, warmup_steps, 1.0)

    def after_warmup(self, progress: float) -> float:
        return 1.0


@configurable
class LinearSchedule(WarmupSchedule):
    """Linear warmup, then linear decay from 1 to `final_fraction`.

    Args:
        num_steps: Number of steps of the run.
        warmup_steps: Number of warmup steps.
        final_fraction: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(self, num_steps: int, warmup_steps: int = 0, final_fraction: float = 0.0):
        super().__init__(num_steps, warmup_steps, final_fraction)

    def after_warmup(self, progress: float) -> float:
        return straight(1.0, self.final_fraction, progress)


@configurable
class CosineSchedule(WarmupSchedule):
    """Linear warmup, then cosine decay from 1 to `final_fraction` (Loshchilov and Hutter, SGDR, 2017, equation 5).

    Args:
        num_steps: Number of steps of the run.
        warmup_steps: Number of warmup steps.
        final_fraction: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(self, num_steps: int, warmup_steps: int = 0, final_fraction: float = 0.1):
        super().__init__(num_steps, warmup_steps, final_fraction)

    def after_warmup(self, progress: float) -> float:
        return cosine(1.0, self.final_fraction, progress)


@configurable
class WarmupStableDecay(WarmupSchedule):
    """Linear warmup, a constant factor of 1, then linear decay to `final_fraction` (Hu et al., MiniCPM, 2024).

    Args:
        num_steps: Number of steps of the run.
        warmup_steps: Number of warmup steps.
        decay_fraction: Fraction of all steps that the final decay takes.
        final_fraction: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(self, num_steps: int, warmup_steps: int = 0, decay_fraction: float = 0.2, final_fraction: float = 0.0):
        super().__init__(num_steps, warmup_steps, final_fraction)
        _require_fraction(decay_fraction, "decay_fraction")
        self.decay_steps = round(decay_fraction * num_steps)
        fits = self.decay_steps + warmup_steps <= num_steps
        require(fits, "decay_fraction", f"leaves no room for {warmup_steps} steps of warmup: {decay_fraction}")

    def after_warmup(self, progress: float) -> float:
        after = self.final_fraction == 0.0  # steps of the decay after the last one
        steps_left = (1.0 - progress) * (self.num_steps - self.warmup_steps + after)
        if steps_left >= self.decay_steps + after:
            return 1.0
        return straight(self.final_fraction, 1.0, steps_left / (self.decay_steps + after))
