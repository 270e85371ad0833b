"""Windows of steps that are recorded: profiles and memory snapshots."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from ml.config import require

Finish = Callable[[Path], None]


class StepWindow(abc.ABC):
    """Records `num_steps` steps from `first_step`.

    Attributes:
        prefix: Prefix of the names of its files.
    """

    prefix = ""

    def __init__(self, run_steps: int, first_step: int, num_steps: int):
        """Sets the window.

        Args:
            run_steps: Number of steps of the run, which must contain the window.
            first_step: First recorded step.
            num_steps: Number of recorded steps.
        """
        require(first_step > 0, "first_step", f"must be positive, not {first_step}")
        require(num_steps > 0, "num_steps", f"must be positive, not {num_steps}")
        self.first_step = first_step
        self.last_step = first_step + num_steps - 1
        problem = f"begins a window that ends at step {self.last_step}, and the run at step {run_steps}"
        require(self.last_step <= run_steps, "first_step", problem)

    def check(self) -> None:  # noqa: B027  (most windows open on any machine)
        """Checks before the first step that the machine can record.

        Raises:
            RunError: It cannot.
        """

    @abc.abstractmethod
    def begin(self, device: torch.device) -> Finish:
        """Starts to record.

        Args:
            device: The device of the run.

        Returns:
            A function that stops recording and writes its files; it takes their path without a suffix.
        """


class StepWindows:
    """Opens and closes the windows of a run. A run that resumes inside a window records the rest of it.

    A window that is open when training ends or fails is written too, because it shows the allocations before a failure.
    """

    def __init__(self, windows: Sequence[StepWindow], folder: Path, device: torch.device, say: Callable[[str], None]):
        """Creates closed windows.

        Args:
            windows: The windows to record.
            folder: Receives the files.
            device: The device of the run.
            say: Receives the log lines.
        """
        self._windows = windows
        self._folder = folder
        self._device = device
        self._say = say
        self._open: dict[StepWindow, tuple[int, Finish]] = {}
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for window in list(self._open):
            self._close(window)

    def before(self, step: int) -> None:
        """Opens the windows that contain `step`, before it is taken."""
        self._step = step
        for window in self._windows:
            if window not in self._open and window.first_step <= step <= window.last_step:
                self._open[window] = (step, window.begin(self._device))

    def after(self, step: int) -> bool:
        """Closes the windows that end at `step`; returns whether one was written, which takes time."""
        ended = [window for window in self._open if step >= window.last_step]
        for window in ended:
            self._close(window)
        return bool(ended)

    def _close(self, window: StepWindow) -> None:
        first, finish = self._open.pop(window)
        path = self._folder / f"{window.prefix}steps_{first}_to_{self._step}"
        try:
            finish(path)
        except (OSError, RuntimeError) as error:  # a failed recording must not stop training
            self._say(f"steps {first} to {self._step} were recorded and could not be written to {path}: {error}")
        else:
            self._say(f"recorded steps {first} to {self._step}: {path}.*")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` at the end; creates the folder."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    yield temporary
    temporary.replace(path)
