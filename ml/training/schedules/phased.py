"""A schedule composed of phases."""

from collections.abc import Callable

from ml.config import REQUIRED, child, configurable, require
from ml.training.schedules.phases import Phase, Span
from ml.training.schedules.schedule import Schedule


@configurable
class PhasedSchedule(Schedule):
    """A sequence of phases: `{'warmup': @WarmupPhase, 'stable': @ConstantPhase, 'decay': @SquareRootPhase}`.

    The names are the scopes: `warmup/WarmupPhase.num_steps = 100`, `decay/SquareRootPhase.fraction = 0.2`. One phase
    may set neither and takes the remaining steps; all phases together are as long as the run.

    Args:
        num_steps: Number of steps of the run.
        phases: The phases by name, in order.
    """

    def __init__(self, num_steps: int, phases: dict[str, Callable[..., Phase]] = REQUIRED):
        require(len(phases) > 0, "phases", "must contain at least one phase")
        self.num_steps = num_steps
        self.phases = [child(name, phase) for name, phase in phases.items()]
        lengths = [phase.length(num_steps) for phase in self.phases]
        self._spans = self._placed(self._filled(list(phases), lengths))

    def __call__(self, step: int) -> float:
        for phase, span in self._spans:
            if step <= span.before + span.num_steps:
                return phase.factor(step - span.before, span)
        raise ValueError(f"step {step} is after the last step of the schedule, {self.num_steps}")

    def _filled(self, names: list[str], lengths: list[int | None]) -> list[int]:
        """Returns the lengths, with the remaining steps for the phase without one."""
        parts = ", ".join(f"{name}: {'rest' if n is None else n}" for name, n in zip(names, lengths, strict=True))
        left = self.num_steps - sum(length or 0 for length in lengths)
        num_open = lengths.count(None)
        require(num_open < 2, "phases", f"may have one phase without a length, not {num_open}: {parts}")
        whole = f"must have Trainer.num_steps ({self.num_steps}) steps in total: {parts}"
        require(left >= 0 if num_open else left == 0, "phases", whole)
        return [max(0, left) if length is None else length for length in lengths]

    def _placed(self, lengths: list[int]) -> list[tuple[Phase, Span]]:
        """Returns the span of each phase, without phases of no steps."""
        before, begin, placed = 0, 1.0, []
        for phase, length in zip(self.phases, lengths, strict=True):
            if length:
                span = Span(before, length, begin)
                placed.append((phase, span))
                before, begin = before + length, phase.final(span)
        return placed
