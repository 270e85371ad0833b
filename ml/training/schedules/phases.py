"""The phases that a schedule can be composed of.

Each has a number of steps, or a fraction of those of the run, or takes what the others leave. It begins at the factor
where the phase before it ended (the first at 1), and its last step has its final factor.
"""

import abc
import math
from typing import NamedTuple

from ml.config import configurable, require
from ml.training.schedules.schedule import cosine, straight

_MAX_CYCLES = 10_000


class Span(NamedTuple):
    """Where a phase stands in the run: the steps before it, its own, and the factor at which it begins."""

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
        """How many steps it asks for in a run of `num_steps`; None for what the others leave."""
        return self.num_steps if self.fraction is None else round(self.fraction * num_steps)

    @abc.abstractmethod
    def factor(self, step: int, span: Span) -> float:
        """The factor of a step of the phase, which counts from 1."""


def _require_factor(value: float, parameter: str) -> None:
    require(0.0 <= value < math.inf, parameter, f"must be at least 0 and finite, not {value}")


@configurable
class WarmupPhase(Phase):
    """A straight line from `start`, which is the factor of the step before the first, to `end`."""

    def __init__(
        self, num_steps: int | None = None, fraction: float | None = None, start: float = 0.0, end: float = 1.0
    ):
        super().__init__(num_steps, fraction)
        _require_factor(start, "start")
        _require_factor(end, "end")
        self.start = start
        self.end = end

    def factor(self, step: int, span: Span) -> float:
        return straight(self.start, self.end, step / span.num_steps)


@configurable
class ConstantPhase(Phase):
    """The factor stays."""

    def __init__(self, num_steps: int | None = None, fraction: float | None = None):
        super().__init__(num_steps, fraction)

    def factor(self, step: int, span: Span) -> float:
        return span.begin


class CurvePhase(Phase):
    """From where the phase before it ended to `end`, along a curve that a subclass gives."""

    def __init__(self, num_steps: int | None, fraction: float | None, end: float):
        super().__init__(num_steps, fraction)
        _require_factor(end, "end")
        self.end = end

    def factor(self, step: int, span: Span) -> float:
        return self.curve(span.begin, step / span.num_steps)

    @abc.abstractmethod
    def curve(self, begin: float, progress: float) -> float:
        """The factor at `progress` in (0, 1]."""


@configurable
class LinearPhase(CurvePhase):
    """A straight line."""

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.0):
        super().__init__(num_steps, fraction, end)

    def curve(self, begin: float, progress: float) -> float:
        return straight(begin, self.end, progress)


@configurable
class CosinePhase(CurvePhase):
    """Half a cosine."""

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.1):
        super().__init__(num_steps, fraction, end)

    def curve(self, begin: float, progress: float) -> float:
        return cosine(begin, self.end, progress)


@configurable
class SquareRootPhase(CurvePhase):
    """1 - √progress of the way from `end`: the decay that Hägele et al. (2024) found best after a constant rate."""

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, end: float = 0.0):
        super().__init__(num_steps, fraction, end)

    def curve(self, begin: float, progress: float) -> float:
        return straight(begin, self.end, math.sqrt(progress))


@configurable
class PolynomialPhase(CurvePhase):
    """(1 - progress)^`power` of the way from `end`."""

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
    """(steps before the phase / steps of the run so far)^`exponent` times where it begins: it knows no last step.

    After a warmup and with the exponent 1/2 it is the schedule of Vaswani et al. (2017, equation 3). As the first
    phase, it counts from step 1.
    """

    def __init__(self, num_steps: int | None = None, fraction: float | None = None, exponent: float = 0.5):
        super().__init__(num_steps, fraction)
        require(0.0 < exponent < math.inf, "exponent", f"must be positive and finite, not {exponent}")
        self.exponent = exponent

    def factor(self, step: int, span: Span) -> float:
        return span.begin * (max(1, span.before) / (span.before + step)) ** self.exponent


@configurable
class RestartsPhase(Phase):
    """Half a cosine to `end`, again and again (SGDR, Loshchilov and Hutter, 2017), each `growth` times as long.

    Args:
        num_steps: Steps of the phase.
        fraction: The part of the run that it is.
        num_cycles: How many halves; their lengths are rounded to whole steps.
        growth: How many times longer a cycle is than the one before.
        decay: What the begin of a cycle is of that of the one before.
        end: The factor of the last step of each cycle.
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
        return cosine(span.begin * self.decay**cycle, self.end, (step - first) / (ends[cycle] - first))

    def _ends(self, num_steps: int) -> list[int]:
        """The last step of each cycle."""
        weights = [self.growth**cycle for cycle in range(self.num_cycles)]
        return [round(num_steps * sum(weights[: cycle + 1]) / sum(weights)) for cycle in range(self.num_cycles)]
