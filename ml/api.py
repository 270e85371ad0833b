"""The calls of Juniper in Python. Importing this imports no torch: what needs it does so when it is called."""

from pathlib import Path

from ml.building import SHIPPED_CONFIGS, build, build_trainer, load
from ml.runs import Run

__all__ = ["SHIPPED_CONFIGS", "build", "build_trainer", "load", "open_run"]


def open_run(path: str | Path, *, trust_code: bool = False) -> Run:
    """Opens the folder of a run: its configuration, its weights and its metrics. Executes nothing that lies in it.

    Args:
        path: of the folder.
        trust_code: executes the copy of its own code that the run keeps, where it has layers that are not installed.

    Raises:
        UserError: where there is no run.
    """
    return Run(path, trust_code=trust_code)
