"""A schedule composed of phases."""

from collections.abc import Callable

from ml.config import REQUIRED, child, configurable, require
from ml.training.schedules.phases import Phase, Span
from ml.training.schedules.schedule import Schedule


@configurable
class PhasedSchedule(Schedule):
    """Phases one after another: `{'warmup': @WarmupPhase, 'stable': @ConstantPhase, 'decay': @SquareRootPhase}`.

    The names are the scopes: `warmup/WarmupPhase.num_steps = 100`, `decay/SquareRootPhase.fraction = 0.2`. One phase
    may say neither and takes what the others leave; together they are as long as the run.
    """

    def __init__(self, num_steps: int, phases: dict[str, Callable[..., Phase]] = REQUIRED):
        require(len(phases) > 0, "phases", "must name one phase or more")
        self.num_steps = num_steps
        self.phases = [child(name, phase) for name, phase in phases.items()]
        lengths = [phase.length(num_steps) for phase in self.phases]
        self._spans = self._placed(self._filled(list(phases), lengths))

    def __call__(self, step: int) -> float:
        for phase, span in self._spans:
            if step <= span.before + span.num_steps:
                return phase.factor(step - span.before, span)
        raise ValueError(f"step {step} is behind the last of the schedule, {self.num_steps}")

    def _filled(self, names: list[str], lengths: list[int | None]) -> list[int]:
        """The lengths, with what is left for the phase that says none."""
        parts = ", ".join(f"{name}: {'rest' if n is None else n}" for name, n in zip(names, lengths, strict=True))
        left = self.num_steps - sum(length or 0 for length in lengths)
        num_open = lengths.count(None)
        require(num_open < 2, "phases", f"may leave the steps of one phase open, not of {num_open}: {parts}")
        whole = f"must have Trainer.num_steps ({self.num_steps}) steps together: {parts}"
        require(left >= 0 if num_open else left == 0, "phases", whole)
        return [max(0, left) if length is None else length for length in lengths]

    def _placed(self, lengths: list[int]) -> list[tuple[Phase, Span]]:
        """Where each phase stands; those without steps stand nowhere."""
        before, begin, placed = 0, 1.0, []
        for phase, length in zip(self.phases, lengths, strict=True):
            if length:
                span = Span(before, length, begin)
                placed.append((phase, span))
                before, begin = before + length, phase.factor(length, span)
        return placed
