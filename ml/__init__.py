"""Juniper: a trainer for block-modular language models, wired by gin.

`ml.load` reads a configuration, `ml.build` makes its model, `ml.train` trains it, `ml.open_run` opens the folder of a
run.
"""

from ml.api import SHIPPED_CONFIGS, build, load, open_run, train
from ml.config import Config, ConfigError, ImportedValue
from ml.errors import RunFailure, UserError
from ml.runs import Run
from ml.version import __version__

__all__ = [
    "SHIPPED_CONFIGS",
    "Config",
    "ConfigError",
    "ImportedValue",
    "Run",
    "RunFailure",
    "UserError",
    "__version__",
    "build",
    "load",
    "open_run",
    "train",
]
