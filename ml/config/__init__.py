"""Strict gin configurations: loading, scopes, types, provenance, the operative config. Imports no torch."""

from typing import Any

import gin

from ml.config.canonical import UNORDERED
from ml.config.comparison import Difference, compare, difference, fingerprint, neutral_changes
from ml.config.config import Bindings, Config, ImportedValue, load
from ml.config.configurable import configurable
from ml.config.constructors import child, children, require, unused
from ml.config.errors import ConfigError, Location, ParameterError, Problem
from ml.config.provenance import Record, explain, select
from ml.config.signatures import Neutral
from ml.config.values import UnwritableError, register_constant, register_enum

REQUIRED: Any = gin.REQUIRED  # as a default it stands for a value of whatever type its parameter has

__all__ = [
    "REQUIRED",
    "UNORDERED",
    "Bindings",
    "Config",
    "ConfigError",
    "Difference",
    "ImportedValue",
    "Location",
    "Neutral",
    "ParameterError",
    "Problem",
    "Record",
    "UnwritableError",
    "child",
    "children",
    "compare",
    "configurable",
    "difference",
    "explain",
    "fingerprint",
    "load",
    "neutral_changes",
    "register_constant",
    "register_enum",
    "require",
    "select",
    "unused",
]
