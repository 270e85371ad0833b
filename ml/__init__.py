"""Juniper: a trainer for block-modular language models, wired by gin.

Three calls load a run, look inside it and go on from it: `ml.load`, `ml.build`, `ml.open_run`.
"""

from ml.api import SHIPPED_CONFIGS, build, load, open_run
from ml.config import Config, ConfigError, ImportedValue
from ml.runs import Run
from ml.version import __version__

__all__ = [
    "SHIPPED_CONFIGS",
    "Config",
    "ConfigError",
    "ImportedValue",
    "Run",
    "__version__",
    "build",
    "load",
    "open_run",
]
