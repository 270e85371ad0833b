"""What a tracker of metrics is asked for."""

import abc
from collections.abc import Mapping
from typing import Any

from ml.training.run_folder import RunFolder


class Tracker(abc.ABC):
    """Is told what a run measures.

    A tracker may raise what it likes: while the run goes on, it is then named once and left out.
    """

    @abc.abstractmethod
    def check(self) -> None:
        """Stops before anything is written on a machine that lacks what the tracker needs.

        Raises:
            RunError: It lacks something.
        """

    @abc.abstractmethod
    def start(self, run: RunFolder, step: int) -> None:
        """The run in a folder begins, or goes on, after `step`; what was logged of later steps is void.

        The folder holds the configuration (`run.operative_config()`) and the metrics up to `step` (`run.metrics()`).
        """

    @abc.abstractmethod
    def log(self, record: Mapping[str, Any]) -> None:
        """A step was measured: `record` is its line of `metrics.jsonl`."""

    @abc.abstractmethod
    def close(self, failed: bool) -> None:
        """The process stops training: at the last step, because somebody asked, or because it failed."""
