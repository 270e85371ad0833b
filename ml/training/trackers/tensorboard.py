"""Metrics for TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml import metric_names
from ml.config import configurable
from ml.optional import optional_import
from ml.training.errors import RunError
from ml.training.run_folder import RunFolder
from ml.training.trackers.tracker import Tracker


@configurable(neutral=True)
class TensorBoard(Tracker):
    """Writes event files to `tensorboard/` of the run: every metric by step, and the operative config as text.

    `tensorboard --logdir runs` compares all runs. When a run resumes, the steps after its checkpoint are purged.
    """

    def check(self) -> None:
        self._library()

    def start(self, run: RunFolder, step: int) -> None:
        folder = run.path / "tensorboard"
        earlier = list(folder.glob("events.out.tfevents.*"))
        _await_later_name(earlier)
        # TensorBoard then skips the later steps of earlier processes.
        self._writer = self._library().SummaryWriter(str(folder), purge_step=step + 1)
        operative = run.operative_config()
        if operative is not None and not earlier:
            indented = "".join(f"    {line}" for line in operative.splitlines(keepends=True))  # verbatim in Markdown
            self._writer.add_text("operative_config", indented, step)
        self._writer.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in metric_names.scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()  # before a checkpoint of this step is written

    def close(self, failed: bool) -> None:
        self._writer.close()

    def _library(self) -> ModuleType:
        return optional_import("torch.utils.tensorboard", "tensorboard", "TensorBoard", RunError)


def _await_later_name(earlier: list[Path]) -> None:
    """Waits for a new second: event files are read in the order of their names, which begin with a time in seconds."""
    made = [int(path.name.split(".")[3]) for path in earlier]
    while made and time.time() < max(made) + 1 <= time.time() + 1:
        time.sleep(0.02)
