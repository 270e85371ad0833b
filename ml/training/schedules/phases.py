"""Phases of a learning rate schedule.

A phase has a number of steps, or a fraction of the steps of the run, or takes the remaining steps. It begins at the
final factor of the phase before it (the first phase at 1); its last step has its final factor. A final factor of 0 is
reached one step later, so that no step is taken at learning rate 0.
"""

import abc
import math
from typing import NamedTuple

from ml.config import configurable, require
from ml.training.schedules.schedule import cosine, progress_of_decay, straight

_MAX_CYCLES = 10_000


class Span(NamedTuple):
    """Position of a phase in the run.

    Attributes:
        before: Number of steps before the phase.
        num_steps: Number of steps of the phase.
        begin: Factor at which the phase begins.
    """

    before: int
    num_steps: int
    begin: float


class Phase(abc.ABC):
    """A span of steps over which the factor follows one curve."""

    def __init__(self, num_steps: int | None, fraction: float | None):
        require(num_steps is None or num_steps >= 0, "num_steps", f"must not be negative: {num_steps}")
        fits = fraction is None or 0.0 <= fraction <= 1.0
        require(fits, "fraction", f"must be in [0, 1], not {fraction}")
        require(num_steps is None or fraction is None, "fraction", "and num_steps cannot both be set")
        self.num_steps = num_steps
        self.fraction = fraction

    def length(self, num_steps: int) -> int | None:
        """Returns the number of steps in a run of `num_steps`; None for the remaining steps."""
        return self.num_steps if self.fraction is None else round(self.fraction * num_steps)

    @abc.abstractmethod
    def factor(self, step: int, span: Span) -> float:
        """Returns the factor of a step.

        Args:
            step: The step within the phase, from 1.
            span: The position of the phase in the run.
        """

    def final(self, span: Span) -> float:
        """Returns the factor at which the next phase begins."""
        return self.factor(span.num_steps, span)


def _require_factor(value: float, parameter: str) -> None:
    require(0.0 <= value < math.inf, parameter, f"must be at least 0 and finite, not {value}")


@configurable
class WarmupPhase(Phase):
    """Linear warmup from `start`, the factor of the step before the phase, to `end`.

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        start: Factor before the first step.
        end: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(
        self, num_steps: int | None = None, fraction: float | None = None, start: float = 0.0, end: float = 1.0
    ):
        super().__init__(num_steps, fraction)
        _require_factor(start, "start")
        _require_factor(end, "end")
        self.start = start
        self.end = end

    def factor(self, step: int, span: Span) -> float:
        return straight(self.start, self.end, progress_of_decay(step, span.num_steps, self.end))

    def final(self, span: Span) -> float:
        return self.end


@configurable
class ConstantPhase(Phase):
    """Constant factor, the final factor of the phase before it.

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
    """

    def __init__(self, num_steps: int | None = None, fraction: float | None = None):
        super().__init__(num_steps, fraction)

    def factor(self, step: int, span: Span) -> float:
        return span.begin


class CurvePhase(Phase):
    """Decay from the final factor of the phase before it to `end`, along the curve of a subclass."""

    def __init__(self, num_steps: int | None, fraction: float | None, end: float):
        super().__init__(num_steps, fraction)
        _require_factor(end, "end")
        self.end = end

    def factor(self, step: int, span: Span) -> float:
        return self.curve(span.begin, progress_of_decay(step, span.num_steps, self.end))

    def final(self, span: Span) -> float:
        return self.end

    @abc.abstractmethod
    def curve(self, begin: float, progress: float) -> float:
        """Returns the factor at `progress` in (0, 1] of a phase that begins at `begin`."""


@configurable
class LinearPhase(CurvePhase):
    """Linear decay to `end`.

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        end: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.0):
        super().__init__(num_steps, fraction, end)

    def curve(self, begin: float, progress: float) -> float:
        return straight(begin, self.end, progress)


@configurable
class CosinePhase(CurvePhase):
    """Cosine decay to `end` (Loshchilov and Hutter, SGDR, 2017, equation 5).

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        end: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.1):
        super().__init__(num_steps, fraction, end)

    def curve(self, begin: float, progress: float) -> float:
        return cosine(begin, self.end, progress)


@configurable
class SquareRootPhase(CurvePhase):
    """Decay to `end` with 1 - √progress, the best decay after a constant learning rate in Hägele et al. (2024).

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        end: Factor of the last step; 0 is reached one step after it.
    """

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.0):
        super().__init__(num_steps, fraction, end)

    def curve(self, begin: float, progress: float) -> float:
        return straight(begin, self.end, math.sqrt(progress))


@configurable
class PolynomialPhase(CurvePhase):
    """Decay to `end` with (1 - progress)^`power`.

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        end: Factor of the last step; 0 is reached one step after it.
        power: Exponent of the decay; 1 is linear.
    """

    def __init__(
        self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.0, power: float = 2.0
    ):
        super().__init__(num_steps, fraction, end)
        require(0.0 < power < math.inf, "power", f"must be positive and finite, not {power}")
        self.power = power

    def curve(self, begin: float, progress: float) -> float:
        return straight(self.end, begin, (1.0 - progress) ** self.power)


@configurable
class PowerLawPhase(Phase):
    """Power law (steps before the phase / current step)^`exponent`, independent of the length of the run.

    The power law scales the factor at which the phase begins. After a warmup, exponent 1/2 is the schedule of Vaswani
    et al. (2017, equation 3). A first phase uses 1 as the number of steps before it.

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        exponent: Exponent of the power law.
    """

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, exponent: float = 0.5):
        super().__init__(num_steps, fraction)
        require(0.0 < exponent < math.inf, "exponent", f"must be positive and finite, not {exponent}")
        self.exponent = exponent

    def factor(self, step: int, span: Span) -> float:
        return span.begin * (max(1, span.before) / (span.before + step)) ** self.exponent


@configurable
class RestartsPhase(Phase):
    """Cosine decay with warm restarts (Loshchilov and Hutter, SGDR, 2017).

    Args:
        num_steps: Number of steps; None if `fraction` is set or the phase takes the remaining steps.
        fraction: Fraction of the steps of the run; None if `num_steps` is set or the phase takes the remaining steps.
        num_cycles: Number of cycles; their lengths are rounded to whole steps.
        growth: Length of a cycle relative to the one before it.
        decay: Initial factor of a cycle relative to the one before it.
        end: Factor of the last step of each cycle; 0 is reached one step after it.
    """

    def __init__(
        self,
        num_steps: int | None = None,
        fraction: float | None = None,
        num_cycles: int = 4,
        growth: float = 2.0,
        decay: float = 1.0,
        end: float = 0.0,
    ):
        super().__init__(num_steps, fraction)
        in_range = 0 < num_cycles <= _MAX_CYCLES
        require(in_range, "num_cycles", f"must be from 1 to {_MAX_CYCLES:,}, not {num_cycles}")
        require(0.0 < growth < math.inf, "growth", f"must be positive and finite, not {growth}")
        require(0.0 < decay <= 1.0, "decay", f"must be in (0, 1], not {decay}")
        _require_factor(end, "end")
        self.num_cycles = num_cycles
        self.growth = growth
        self.decay = decay
        self.end = end

    def factor(self, step: int, span: Span) -> float:
        ends = self._ends(span.num_steps)
        cycle = next(number for number, end in enumerate(ends) if step <= end)
        first = ends[cycle - 1] if cycle else 0
        progress = progress_of_decay(step - first, ends[cycle] - first, self.end)
        return cosine(span.begin * self.decay**cycle, self.end, progress)

    def final(self, span: Span) -> float:
        return self.end

    def _ends(self, num_steps: int) -> list[int]:
        """Returns the last step of each cycle."""
        weights = [self.growth**cycle for cycle in range(self.num_cycles)]
        return [round(num_steps * sum(weights[: cycle + 1]) / sum(weights)) for cycle in range(self.num_cycles)]
