"""Base class of trackers."""

import abc
from collections.abc import Mapping
from typing import Any

from ml.training.run_folder import RunFolder


class Tracker(abc.ABC):
    """Receives the metrics of a run.

    A tracker that raises an error during training is reported once and disabled; training continues.
    """

    @abc.abstractmethod
    def check(self) -> None:
        """Checks before anything is written that the machine has what the tracker needs.

        Raises:
            RunError: A library is missing.
        """

    @abc.abstractmethod
    def start(self, run: RunFolder, step: int) -> None:
        """Starts or resumes a run after `step`; metrics logged for later steps are void.

        Args:
            run: The run folder, with the configuration (`run.operative_config()`) and the metrics up to `step`
                (`run.metrics()`).
            step: The last step that was taken; 0 in a new run.
        """

    @abc.abstractmethod
    def log(self, record: Mapping[str, Any]) -> None:
        """Logs a step; `record` is its line of `metrics.jsonl`."""

    @abc.abstractmethod
    def close(self, failed: bool) -> None:
        """Ends tracking in this process, at the last step, after a request to stop, or after a failure.

        Args:
            failed: Whether training failed.
        """
