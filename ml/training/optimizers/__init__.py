"""Optimizers and parameter groups."""

from ml.training.optimizers.adafactor import Adafactor
from ml.training.optimizers.adamw import AdamW
from ml.training.optimizers.groups import ParameterGroup, apply_schedule, group_parameters
from ml.training.optimizers.lion import Lion
from ml.training.optimizers.muon import Muon
from ml.training.optimizers.optimizer import Assignment, Optimizer
from ml.training.optimizers.sgd import SGD
from ml.training.optimizers.state_formats import BFloat16State, Blockwise8BitState, Float32State, StateFormat
from ml.training.optimizers.state_size import require_whole_state, state_bytes

__all__ = [
    "SGD",
    "Adafactor",
    "AdamW",
    "Assignment",
    "BFloat16State",
    "Blockwise8BitState",
    "Float32State",
    "Lion",
    "Muon",
    "Optimizer",
    "ParameterGroup",
    "StateFormat",
    "apply_schedule",
    "group_parameters",
    "require_whole_state",
    "state_bytes",
]
