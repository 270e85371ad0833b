"""All trackers of a run, isolated from training."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from ml.training.errors import RunError
from ml.training.run_folder import RunFolder
from ml.training.trackers.tracker import Tracker


class Tracking:
    """Passes metrics to each tracker. One that fails is reported once and disabled; `metrics.jsonl` is complete.

    A tracker that fails before the first step stops the run, because the user can still fix it.
    """

    def __init__(self, trackers: Sequence[Tracker], say: Callable[[str], None]):
        """Creates the tracking of a run.

        Args:
            trackers: The trackers.
            say: Receives a message about a tracker that fails.
        """
        self._trackers = list(trackers)
        self._say = say
        self._started: list[Tracker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._each(lambda tracker: tracker.close(failed=kind is not None))
        self._started.clear()

    def start(self, run: RunFolder, step: int) -> None:
        """Starts all trackers after `step`.

        Raises:
            RunError: A tracker cannot start in a new run.
        """
        for tracker in self._trackers:
            try:
                tracker.start(run, step)
            except Exception as error:
                if step == 0:
                    raise RunError(f"{type(tracker).__name__} cannot start: {error}") from error
                self._warn(tracker, error)
            else:
                self._started.append(tracker)

    def log(self, record: Mapping[str, Any]) -> None:
        """Logs a step to all trackers."""
        if self._started:
            self._each(lambda tracker: tracker.log(record))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._started):
            try:
                call(tracker)
            except Exception as error:  # third-party library: disk, network, bugs
                self._started.remove(tracker)
                self._warn(tracker, error)

    def _warn(self, tracker: Tracker, error: Exception) -> None:
        self._say(
            f"{type(tracker).__name__} failed and is disabled; training continues, and metrics.jsonl is complete: "
            f"{type(error).__name__}: {error}"
        )
