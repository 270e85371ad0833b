"""The calls of Juniper in Python. Importing this imports no torch: what needs it does so when it is called."""

from pathlib import Path

from ml.building import SHIPPED_CONFIGS, build, build_trainer, load
from ml.runs import Run

__all__ = ["SHIPPED_CONFIGS", "build", "build_trainer", "load", "open_run"]


def open_run(path: str | Path) -> Run:
    """Opens the folder of a run: its configuration, its weights and its metrics.

    Raises:
        UserError: where there is no run.
    """
    return Run(path)
