"""End of a run, or of one of its processes before that, and its reason."""

import time
from pathlib import Path

from ml.training.signals import Requests
from ml.training.state import EARLY_STOPPING, TrainState
from ml.training.trainer import Trainer


class Ending:
    """Decides after which step a process ends: at the end of the run, or earlier, so that another one resumes.

    Args:
        trainer: The settings of the run.
        state: The training state, which counts the steps.
        requests: The requests of signals.
    """

    def __init__(self, trainer: Trainer, state: TrainState, requests: Requests):
        self.trainer = trainer
        self.state = state
        self.requests = requests
        self._begun = time.monotonic()

    @property
    def is_finished(self) -> bool:
        """True once the last step is taken and validated."""
        return self.is_at_end and self.state.unvalidated is None

    @property
    def is_at_end(self) -> bool:
        """True once the last step is taken."""
        return self.trainer.is_end(self.state.step, self.state.lowest)

    @property
    def is_at_stop(self) -> bool:
        """True once the step of `Trainer.stop_at_step` is taken."""
        last = self.trainer.stop_at_step
        return last is not None and self.state.step >= last

    @property
    def seconds(self) -> float:
        """Seconds since the start of the process."""
        return time.monotonic() - self._begun

    def stops(self) -> bool:
        """Returns whether this process was requested to stop, or has run for as long as it may."""
        return self.requests.stop is not None or self._is_out_of_time

    @property
    def _is_out_of_time(self) -> bool:
        limit = self.trainer.stop_after
        return limit is not None and self.seconds >= limit

    def report(self, folder: Path) -> str:
        """Returns the last line of the progress: where the process ended, why, and how to resume.

        Args:
            folder: The run folder.
        """
        step, num_steps = self.state.step, self.trainer.num_steps
        if self.is_finished:
            return f"trained to step {step}{self._why_early()}: {folder}"
        if step == 0:
            return "stopped before the first step"
        return (
            f"stopped after step {step} of {num_steps}{self._why_stopped()} and saved; the same command with "
            f"--run_dir={folder} {self._how_to_resume()}"
        )

    def _why_stopped(self) -> str:
        if self.is_at_stop:
            return f" (Trainer.stop_at_step = {self.trainer.stop_at_step})"
        is_signaled = self.requests.stop is not None
        return " (Trainer.stop_after)" if self._is_out_of_time and not is_signaled else ""

    def _how_to_resume(self) -> str:
        return "and a later step to stop at resumes from there" if self.is_at_stop else "resumes from there"

    def _why_early(self) -> str:
        lowest = self.state.lowest.get(EARLY_STOPPING)
        if lowest is None or self.state.step >= self.trainer.num_steps:
            return ""
        value = "was never finite" if lowest.value is None else f"was lowest at step {lowest.step} ({lowest.value:.6g})"
        return f" of {self.trainer.num_steps}, because {lowest.metric} {value}"
