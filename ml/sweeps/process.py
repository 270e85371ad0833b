"""Runs the members of a sweep one after another, each in a separate process."""

import contextlib
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from ml import files
from ml.errors import RunFailure
from ml.sweeps.file import Sweep
from ml.sweeps.plan import PlannedRun
from ml.sweeps.state import COMMAND_MARK, State, Status, last_line, state_of

SECONDS_BETWEEN_LOOKS = 0.5
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Watcher:
    """Receives the events of a sweep. The base class ignores them."""

    def skipped(self, number: int, state: State) -> None:
        """A member was finished before."""

    def started(self, number: int, run: PlannedRun) -> None:
        """A member's process runs."""

    def looked(self, number: int, run: PlannedRun, line: str) -> None:
        """It still does; `line` is the last of its log."""

    def ended(self, number: int, state: State) -> None:
        """It does no longer."""


class Stop:
    """Signal handler that stops the sweep and forwards each signal to the running process.

    The members run in separate process groups, so that Ctrl-C on a terminal reaches them only through this handler.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.process: subprocess.Popen | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler. The run ends after its step with a checkpoint; at a second Ctrl-C it leaves at once."""
        self.is_asked = True
        if self.process is not None:
            self.process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals for as long as the context lasts, then puts the handlers back."""
        # A shell ignores SIGINT for a command in the background, and `nohup` ignores SIGHUP.
        numbers = [n for n in _STOPPING if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self.receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def run_members(
    sweep: Sweep, planned: Sequence[PlannedRun], directory: Path, watcher: Watcher
) -> tuple[list[State], bool]:
    """Trains every member that is not finished; one that fails does not stop the others.

    Returns:
        The state of each member, and whether a signal stopped the sweep before all were finished.

    Raises:
        RunFailure: The folder cannot be written, or another sweep is at work there.
    """
    states: list[State] = []
    stop = Stop()
    with locked(directory) as lock, stop.listening():
        for number, run in enumerate(planned):
            before = state_of(run)
            if before.status is Status.FINISHED or stop.is_asked:
                states.append(before)
                if before.status is Status.FINISHED:
                    watcher.skipped(number, before)
                continue
            watcher.started(number, run)
            exit_code = _train(sweep, run, lock, stop, partial(watcher.looked, number, run))
            states.append(state_of(run, None if stop.is_asked else exit_code))
            watcher.ended(number, states[-1])
    return states, stop.is_asked and any(state.status is not Status.FINISHED for state in states)


def _train(sweep: Sweep, run: PlannedRun, lock: int, stop: Stop, look: Callable[[str], None]) -> int:
    """One process of a member, from its start to its end; what it prints is added to its log."""
    command = run.command(sweep)
    try:
        run.folder.path.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            log.write(f"{COMMAND_MARK}{shlex.join(command)}\n".encode())
            log.flush()
            # The process holds the lock too: if the sweep is killed while the run continues, no other sweep starts it.
            stop.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, pass_fds=[lock]
            )
    except OSError as error:
        raise RunFailure(f"cannot start {run.member.name}, with its log in {run.log}: {error.strerror}") from error
    if stop.is_asked:  # while it was being started
        stop.process.terminate()
    while True:
        try:
            return stop.process.wait(SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            look(last_line(run))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Holds the folder of the sweep, with a lock that ends with the last process that has it open."""
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = stack.enter_context(files.locked(directory / ".lock", kept_by_children=True))
        except files.LockedError:
            who = "another sweep is at work, or a run that it began"
            raise RunFailure(f"{directory}: {who}: wait for it, or stop it") from None
        except OSError as error:
            raise RunFailure(f"cannot write to {directory}: {error.strerror}") from error
        yield descriptor
