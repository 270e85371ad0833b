"""State of a sweep member, from its folder and the exit code of its last process."""

import contextlib
import enum
import os
import signal
from dataclasses import dataclass

import ml
from ml.errors import UserError
from ml.plots.series import Metrics, parse_metrics
from ml.sweeps.plan import PlannedRun

COMMAND_MARK = "$ "  # begins the line of a log above what a process printed

_TAIL = 4096  # bytes of a log in which its last line is looked for


class Status(enum.Enum):
    """Status of a run."""

    NEW = "not started"
    UNFINISHED = "unfinished"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class State:
    """A run as it is now.

    Attributes:
        run: The run.
        status: Its status.
        metrics: Its metrics.
        exit_code: The exit code of the process that this sweep started, negative for a signal; None if it started none.
        reason: The last line of its log if it failed; else empty.
    """

    run: PlannedRun
    status: Status
    metrics: Metrics
    exit_code: int | None = None
    reason: str = ""

    @property
    def step(self) -> int:
        """The last one that was measured, 0 before the first."""
        return int(self.metrics.last("step") or 0)

    @property
    def text(self) -> str:
        """The status for a table."""
        if self.status is Status.FAILED:
            return f"failed: {exit_text(self.exit_code)}"
        return f"{self.status.value} at step {self.step}" if self.status is Status.UNFINISHED else self.status.value


def state_of(run: PlannedRun, exit_code: int | None = None) -> State:
    """The state of a run, after its process has ended with a code or where there was none.

    A run is finished when its folder has a valid checkpoint of the last step, or early stopping ended it.
    """
    metrics = parse_metrics(run.folder.metrics_file)
    if _is_finished(run):
        return State(run, Status.FINISHED, metrics, exit_code)
    if exit_code:
        return State(run, Status.FAILED, metrics, exit_code, last_line(run))
    status = Status.NEW if run.folder.operative_config() is None else Status.UNFINISHED
    return State(run, status, metrics, exit_code)


def last_line(run: PlannedRun) -> str:
    """The last line of a log with something in it, empty where the last process has printed nothing."""
    try:
        with run.log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "" if last.startswith(COMMAND_MARK) else last


def exit_text(code: int | None) -> str:
    """Such as "exit code 1" or "killed by SIGKILL"."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _is_finished(run: PlannedRun) -> bool:
    if run.is_longer or not run.folder.checkpoints.is_dir():
        return False
    opened = ml.open_run(run.folder.path)
    with contextlib.suppress(UserError):  # there is none of that step, or it is damaged
        if run.num_steps is not None:
            opened.checkpoint(run.num_steps)
            return True
    with contextlib.suppress(UserError):
        return opened.is_finished  # builds the trainer: it may have been stopped early
    return False
